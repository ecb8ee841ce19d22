//! What a record is made of, and its bytes.

use crate::error::{Error, Kind};
use crate::layout::{aligned, Type, RECORD_HEAD};

/// Values of one column, one a row; of a null any.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    I8(&'a [i8]),
    I16(&'a [i16]),
    I32(&'a [i32]),
    /// Of timestamps as well, in their unit.
    I64(&'a [i64]),
    U8(&'a [u8]),
    U16(&'a [u16]),
    U32(&'a [u32]),
    U64(&'a [u64]),
    F32(&'a [f32]),
    F64(&'a [f64]),
    /// A byte each, 0 or 1.
    Bool(&'a [u8]),
    Str(&'a [&'a str]),
    /// Strings or bytes: one offset more than there are rows, from 0 on, into `data`.
    Text {
        offsets: &'a [u32],
        data: &'a [u8],
    },
}

/// One column of a record.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    pub values: Values<'a>,
    /// A bit a row, least significant first, 1 for a value that is there. None: all are.
    pub validity: Option<&'a [u8]>,
}

impl<'a> Column<'a> {
    /// A column without nulls.
    pub const fn of(values: Values<'a>) -> Self {
        Column { values, validity: None }
    }
}

/// One value of a row.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    Null,
    /// Of every integer type that holds it, and of timestamps in their unit.
    I64(i64),
    U64(u64),
    /// Of float32 as well, rounded.
    F64(f64),
    Bool(bool),
    Str(&'a str),
    Bytes(&'a [u8]),
}

const fn invalid(message: &'static str) -> Error {
    Error::fixed(Kind::Invalid, message)
}

const WRONG_TYPE: Error = invalid("a column's values are not of its declared type");
const NULL: Error = invalid("a column that cannot be null has a null");

/// A declared column, as records need it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Declared {
    pub(crate) kind: Type,
    pub(crate) nullable: bool,
}

/// Bytes of bitmaps, values and offsets.
pub(crate) fn fixed_bytes(columns: &[Declared], rows: usize, nulls: bool) -> usize {
    let mut at = bitmaps(columns.len(), rows, nulls);
    for column in columns {
        at = aligned(at, column.kind.width()) + values_bytes(column.kind, rows);
    }
    at
}

pub(crate) fn bitmaps(columns: usize, rows: usize, nulls: bool) -> usize {
    if nulls {
        aligned(columns * rows.div_ceil(8), 8)
    } else {
        0
    }
}

pub(crate) fn values_bytes(kind: Type, rows: usize) -> usize {
    kind.width() * if kind.has_text() { rows + 1 } else { rows }
}

pub(crate) fn record_bytes(fixed: usize, text: usize) -> usize {
    aligned(RECORD_HEAD + fixed + text, 8)
}

impl Column<'_> {
    /// Bytes of its text, once it is sure that it fits.
    pub(crate) fn check(&self, declared: Declared, rows: usize) -> Result<usize, Error> {
        if let Some(validity) = self.validity {
            if validity.len() < rows.div_ceil(8) {
                return Err(invalid("a column's validity has fewer bits than there are rows"));
            }
            if !declared.nullable && (0..rows).any(|row| validity[row / 8] >> (row % 8) & 1 == 0) {
                return Err(NULL);
            }
        }
        let kind = declared.kind;
        let (fits, count, text) = match self.values {
            Values::I8(v) => (kind == Type::Int8, v.len(), 0),
            Values::I16(v) => (kind == Type::Int16, v.len(), 0),
            Values::I32(v) => (kind == Type::Int32, v.len(), 0),
            Values::I64(v) => (kind == Type::Int64 || kind.is_timestamp(), v.len(), 0),
            Values::U8(v) => (kind == Type::Uint8, v.len(), 0),
            Values::U16(v) => (kind == Type::Uint16, v.len(), 0),
            Values::U32(v) => (kind == Type::Uint32, v.len(), 0),
            Values::U64(v) => (kind == Type::Uint64, v.len(), 0),
            Values::F32(v) => (kind == Type::Float32, v.len(), 0),
            Values::F64(v) => (kind == Type::Float64, v.len(), 0),
            Values::Bool(v) => (kind == Type::Bool && v.iter().all(|&b| b < 2), v.len(), 0),
            Values::Str(v) => (kind == Type::String, v.len(), v.iter().map(|s| s.len()).sum()),
            Values::Text { offsets, data } => {
                let text = offsets.last().map_or(0, |&end| end as usize);
                let ordered = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
                if offsets.first() != Some(&0) || !ordered || text > data.len() {
                    return Err(invalid("a column's offsets do not go from 0 up to its text's end"));
                }
                if kind == Type::String {
                    let found = std::str::from_utf8(&data[..text]).map_err(|_| invalid("a string is not UTF-8"))?;
                    if !offsets.iter().all(|&at| found.is_char_boundary(at as usize)) {
                        return Err(invalid("a string is not UTF-8"));
                    }
                }
                (kind.has_text(), offsets.len() - 1, text)
            }
        };
        if !fits {
            return Err(WRONG_TYPE);
        }
        if count != rows {
            return Err(invalid("a column has not as many values as there are rows"));
        }
        Ok(text)
    }

    /// Bytes of its text. `check` has been passed.
    pub(crate) fn text_bytes(&self) -> usize {
        match self.values {
            Values::Str(v) => v.iter().map(|s| s.len()).sum(),
            Values::Text { offsets, .. } => offsets.last().map_or(0, |&end| end as usize),
            _ => 0,
        }
    }

    /// Put values, or offsets and text, where the record has them. `check` has been passed.
    pub(crate) fn put(&self, values: &mut [u8], text: &mut [u8]) {
        match self.values {
            Values::I8(v) => values.copy_from_slice(bytes_of(v)),
            Values::I16(v) => values.copy_from_slice(bytes_of(v)),
            Values::I32(v) => values.copy_from_slice(bytes_of(v)),
            Values::I64(v) => values.copy_from_slice(bytes_of(v)),
            Values::U8(v) | Values::Bool(v) => values.copy_from_slice(v),
            Values::U16(v) => values.copy_from_slice(bytes_of(v)),
            Values::U32(v) => values.copy_from_slice(bytes_of(v)),
            Values::U64(v) => values.copy_from_slice(bytes_of(v)),
            Values::F32(v) => values.copy_from_slice(bytes_of(v)),
            Values::F64(v) => values.copy_from_slice(bytes_of(v)),
            Values::Str(v) => {
                let mut at = 0;
                values[..4].fill(0);
                for (row, its) in v.iter().enumerate() {
                    text[at..at + its.len()].copy_from_slice(its.as_bytes());
                    at += its.len();
                    values[4 * row + 4..4 * row + 8].copy_from_slice(&(at as u32).to_le_bytes());
                }
            }
            Values::Text { offsets, data } => {
                values.copy_from_slice(bytes_of(offsets));
                text.copy_from_slice(&data[..text.len()]);
            }
        }
    }
}

/// Numbers as they lie in memory, which the ring has little-endian.
fn bytes_of<T: Copy>(values: &[T]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "the ring is for little-endian machines") };
    // SAFETY: only called with integers and floats, which have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}

impl Value<'_> {
    pub(crate) fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// Bytes of its text.
    pub(crate) fn text(&self) -> &[u8] {
        match self {
            Value::Str(text) => text.as_bytes(),
            Value::Bytes(bytes) => bytes,
            _ => &[],
        }
    }

    /// Whether it fits its column.
    pub(crate) fn check(&self, declared: Declared) -> Result<(), Error> {
        let fits = match self {
            Value::Null => return if declared.nullable { Ok(()) } else { Err(NULL) },
            Value::Str(_) => declared.kind.has_text(),
            Value::Bytes(_) => declared.kind == Type::Binary,
            _ => self.number(declared.kind).is_some(),
        };
        if fits {
            Ok(())
        } else {
            Err(invalid("a value does not fit its column's declared type"))
        }
    }

    /// The column's bytes, in the first of eight.
    pub(crate) fn number(&self, kind: Type) -> Option<[u8; 8]> {
        let whole: i128 = match *self {
            Value::I64(value) => value.into(),
            Value::U64(value) => value.into(),
            Value::F64(value) if kind == Type::Float64 => return Some(value.to_le_bytes()),
            Value::F64(value) if kind == Type::Float32 => {
                return Some(u64::from((value as f32).to_bits()).to_le_bytes())
            }
            Value::Bool(value) if kind == Type::Bool => return Some(u64::from(value).to_le_bytes()),
            Value::Null => 0,
            _ => return None,
        };
        let bits = 8 * kind.width() as u32;
        let (low, high) = match kind {
            Type::Uint8 | Type::Uint16 | Type::Uint32 | Type::Uint64 => (0, (1i128 << bits) - 1),
            Type::Int8 | Type::Int16 | Type::Int32 | Type::Int64 => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
            _ if kind.is_timestamp() => (i64::MIN.into(), i64::MAX.into()),
            _ if self.is_null() => (0, 0),
            _ => return None,
        };
        (low..=high).contains(&whole).then(|| (whole as u64).to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(kind: Type) -> Declared {
        Declared { kind, nullable: true }
    }

    #[test]
    fn a_value_goes_into_every_type_that_holds_it_and_into_no_other() {
        assert_eq!(Value::I64(-128).number(Type::Int8).unwrap()[0], 0x80);
        assert!(Value::I64(128).number(Type::Int8).is_none());
        assert!(Value::I64(-1).number(Type::Uint64).is_none());
        assert_eq!(Value::U64(u64::MAX).number(Type::Uint64).unwrap(), [0xFF; 8]);
        assert!(Value::U64(u64::MAX).number(Type::TimestampNs).is_none());
        assert_eq!(Value::F64(1.5).number(Type::Float32).unwrap()[..4], 1.5f32.to_le_bytes());
        assert!(Value::F64(1.0).number(Type::Int64).is_none());
        assert!(Value::I64(1).number(Type::Float64).is_none());
        assert!(Value::Str("1").check(column(Type::Int64)).is_err());
        assert!(Value::Bytes(b"1").check(column(Type::String)).is_err());
        assert!(Value::Null.check(Declared { kind: Type::Int8, nullable: false }).is_err());
    }

    #[test]
    fn a_column_that_does_not_fit_is_refused() {
        let text = |offsets, data| Column::of(Values::Text { offsets, data });
        assert_eq!(text(&[0, 2, 2], "é".as_bytes()).check(column(Type::String), 2).unwrap(), 2);
        assert!(text(&[0, 1, 2], "é".as_bytes()).check(column(Type::String), 2).is_err());
        assert!(text(&[0, 1, 2], "é".as_bytes()).check(column(Type::Binary), 2).is_ok());
        assert!(text(&[0, 3], b"ab").check(column(Type::Binary), 1).is_err());
        assert!(text(&[0, 2, 1], b"ab").check(column(Type::Binary), 2).is_err());
        assert!(text(&[1, 2], b"ab").check(column(Type::Binary), 1).is_err());
        assert!(Column::of(Values::I8(&[1])).check(column(Type::Int8), 2).is_err());
        assert!(Column::of(Values::I8(&[1])).check(column(Type::Uint8), 1).is_err());
        assert!(Column::of(Values::Bool(&[2])).check(column(Type::Bool), 1).is_err());
        let holes = Column { values: Values::I8(&[1, 2]), validity: Some(&[0b01]) };
        assert!(holes.check(column(Type::Int8), 2).is_ok());
        assert!(holes.check(Declared { kind: Type::Int8, nullable: false }, 2).is_err());
    }

    #[test]
    fn values_lie_where_the_layout_says() {
        // A byte column, an eight-byte one and text: 1 + 7 + 8 * 3 + 4 * 4 behind three bitmaps.
        let columns = [column(Type::Int8), column(Type::Float64), column(Type::String)];
        assert_eq!(fixed_bytes(&columns, 3, false), 3 + 5 + 24 + 16);
        assert_eq!(fixed_bytes(&columns, 3, true), 8 + 3 + 5 + 24 + 16);
        assert_eq!(record_bytes(48, 3), 88);
    }
}
