//! The ring's bytes: `docs/ring.md`, as constants and types.

pub(crate) const MAGIC: &[u8; 8] = b"YUNHRING";
pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER_BYTES: usize = 4_096;
pub(crate) const RECORD_HEAD: usize = 32;
pub(crate) const ROWS_MAX: usize = 1 << 20;
pub(crate) const WRAP: u32 = 0xFFFF_FFFF;
pub(crate) const KIND_ROWS: u16 = 1;
pub(crate) const HAS_NULLS: u16 = 1;

/// Offsets of the header's words.
pub(crate) const CONSUMED: usize = 64;
pub(crate) const READER_SLEEPS: usize = 72;
pub(crate) const CLOSED: usize = 76;
pub(crate) const PUBLISHED: usize = 128;
pub(crate) const WRITER_WAITS: usize = 136;

/// A column's type. Timestamps count from the Unix epoch, in UTC.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Int8,
    Int16,
    Int32,
    Int64,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Float32,
    Float64,
    Bool,
    String,
    Binary,
    TimestampS,
    TimestampMs,
    TimestampUs,
    TimestampNs,
}

impl Type {
    pub(crate) const ALL: [(Type, &'static str); 17] = [
        (Type::Int8, "int8"),
        (Type::Int16, "int16"),
        (Type::Int32, "int32"),
        (Type::Int64, "int64"),
        (Type::Uint8, "uint8"),
        (Type::Uint16, "uint16"),
        (Type::Uint32, "uint32"),
        (Type::Uint64, "uint64"),
        (Type::Float32, "float32"),
        (Type::Float64, "float64"),
        (Type::Bool, "bool"),
        (Type::String, "string"),
        (Type::Binary, "binary"),
        (Type::TimestampS, "timestamp[s]"),
        (Type::TimestampMs, "timestamp[ms]"),
        (Type::TimestampUs, "timestamp[us]"),
        (Type::TimestampNs, "timestamp[ns]"),
    ];

    pub(crate) fn name(self) -> &'static str {
        Type::ALL[self as usize].1
    }

    /// Bytes of a value in the ring; of text, of an offset.
    pub(crate) fn width(self) -> usize {
        match self {
            Type::Int8 | Type::Uint8 | Type::Bool => 1,
            Type::Int16 | Type::Uint16 => 2,
            Type::Int32 | Type::Uint32 | Type::Float32 | Type::String | Type::Binary => 4,
            _ => 8,
        }
    }

    pub(crate) fn has_text(self) -> bool {
        matches!(self, Type::String | Type::Binary)
    }

    pub(crate) fn is_timestamp(self) -> bool {
        self as u32 >= Type::TimestampS as u32
    }
}

/// What a column is to its table.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Tag,
    Field,
    Time,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        ["tag", "field", "time"][self as usize]
    }
}

pub(crate) const fn aligned(size: usize, to: usize) -> usize {
    (size + to - 1) & !(to - 1)
}
