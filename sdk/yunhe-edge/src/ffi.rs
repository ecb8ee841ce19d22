//! The C ABI: `include/yunhe_edge.h`. A handle is for one thread at a time.

use std::ffi::{c_char, c_void, CStr};
use std::slice;

use crate::connection::{ColumnSpec, Connection, Table};
use crate::error::{Error, Kind};
use crate::layout::{Role, Type};
use crate::record::{Column, Value, Values};

/// What a call says. The sentence about it: `yunhe_edge_error`.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum YunheStatus {
    Ok = 0,
    /// No room in the ring, or none in the database: write slower, or wait.
    Full = 1,
    /// The input is wrong; nothing was taken.
    Invalid = 2,
    NotFound = 3,
    /// The database does not answer, or has hung up: connect again. What was not flushed may be lost.
    Unavailable = 4,
    Other = 5,
}

/// A column's type: what `yunhe_column_spec.type` holds. Timestamps count from the Unix epoch, in UTC.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum YunheType {
    Int8 = 0,
    Int16 = 1,
    Int32 = 2,
    Int64 = 3,
    Uint8 = 4,
    Uint16 = 5,
    Uint32 = 6,
    Uint64 = 7,
    Float32 = 8,
    Float64 = 9,
    Bool = 10,
    String = 11,
    Binary = 12,
    TimestampS = 13,
    TimestampMs = 14,
    TimestampUs = 15,
    TimestampNs = 16,
}

/// What a column is to its table: what `yunhe_column_spec.role` holds.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum YunheRole {
    Tag = 0,
    Field = 1,
    Time = 2,
}

/// Which member of a `yunhe_value` holds the value.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum YunheValueKind {
    Null = 0,
    /// `i`
    Int = 1,
    /// `u`
    Uint = 2,
    /// `f`
    Float = 3,
    /// `i`: 0 or 1
    Bool = 4,
    /// `text`, `length` bytes of UTF-8
    String = 5,
    /// `text`, `length` bytes
    Binary = 6,
}

/// A column as it is declared.
#[repr(C)]
pub struct YunheColumnSpec {
    /// UTF-8, ended by a zero byte.
    pub name: *const c_char,
    /// A YunheType.
    pub kind: u32,
    /// A YunheRole.
    pub role: u32,
    pub nullable: bool,
}

/// Values of one column of a record.
#[repr(C)]
pub struct YunheColumn {
    /// One a row, of the declared type; a bool is a byte, a timestamp an int64. Of strings and bytes: their text.
    pub values: *const c_void,
    /// Of strings and bytes: one more than there are rows, from 0 on. Else NULL.
    pub offsets: *const u32,
    /// A bit a row, least significant first, 1 for a value that is there. NULL: all are.
    pub validity: *const u8,
}

/// One value of a row.
#[repr(C)]
pub struct YunheValue {
    /// A YunheValueKind.
    pub kind: u32,
    /// Of `text`, in bytes.
    pub length: u32,
    pub i: i64,
    pub u: u64,
    pub f: f64,
    pub text: *const c_char,
}

/// A connection to an edge database.
pub struct YunheEdge {
    connection: Connection,
    /// Ended by a zero byte, with room for any sentence: setting it allocates nothing.
    error: [u8; ERROR_BYTES],
}

const ERROR_BYTES: usize = 512;
const NULL: Error = Error::fixed(Kind::Invalid, "a pointer is NULL");

fn put_error(target: &mut [u8], message: &str) {
    let Some(room) = target.len().checked_sub(1) else { return };
    let mut length = message.len().min(room);
    while !message.is_char_boundary(length) {
        length -= 1;
    }
    target[..length].copy_from_slice(&message.as_bytes()[..length]);
    target[length] = 0;
}

impl YunheEdge {
    fn said(&mut self, outcome: Result<(), Error>) -> YunheStatus {
        let Err(error) = outcome else { return YunheStatus::Ok };
        put_error(&mut self.error, &error.message);
        match error.kind {
            Kind::Full => YunheStatus::Full,
            Kind::Invalid => YunheStatus::Invalid,
            Kind::NotFound => YunheStatus::NotFound,
            Kind::Unavailable => YunheStatus::Unavailable,
            Kind::Other => YunheStatus::Other,
        }
    }
}

/// Connect to the database's socket at `path`. `ring_bytes`: a power of two from 65536; 0: as the database has it.
/// NULL: it could not be; `error`, of `error_bytes`, has the sentence.
///
/// # Safety
/// `path` is a string, `error` NULL or writable for `error_bytes`.
#[no_mangle]
pub unsafe extern "C" fn yunhe_edge_connect(
    path: *const c_char,
    ring_bytes: usize,
    error: *mut c_char,
    error_bytes: usize,
) -> *mut YunheEdge {
    let connected = text_of(path).and_then(|path| Connection::connect(path, (ring_bytes != 0).then_some(ring_bytes)));
    match connected {
        Ok(connection) => Box::into_raw(Box::new(YunheEdge { connection, error: [0; ERROR_BYTES] })),
        Err(found) => {
            if !error.is_null() {
                put_error(slice::from_raw_parts_mut(error.cast(), error_bytes), &found.message);
            }
            std::ptr::null_mut()
        }
    }
}

/// Say which columns a table's records carry, in their order; `table_id` is its number from then on. `create`: a table
/// that is not there is made, and fields that are not there are added.
///
/// # Safety
/// `edge` is a handle; `table` is a string; `columns` has `count` elements; `table_id` is writable.
#[no_mangle]
pub unsafe extern "C" fn yunhe_edge_declare(
    edge: *mut YunheEdge,
    table: *const c_char,
    columns: *const YunheColumnSpec,
    count: usize,
    create: bool,
    table_id: *mut u32,
) -> YunheStatus {
    yunhe_edge_declare_decimals(edge, table, columns, std::ptr::null(), count, create, table_id)
}

/// As yunhe_edge_declare. `decimals`, one a column: to how many digits behind the point the values of a field of floating
/// point are rounded, less than 0: as the table has it. NULL: all as the table has them.
///
/// # Safety
/// As yunhe_edge_declare; `decimals` is NULL or has `count` elements.
#[no_mangle]
pub unsafe extern "C" fn yunhe_edge_declare_decimals(
    edge: *mut YunheEdge,
    table: *const c_char,
    columns: *const YunheColumnSpec,
    decimals: *const i8,
    count: usize,
    create: bool,
    table_id: *mut u32,
) -> YunheStatus {
    let Some(edge) = edge.as_mut() else { return YunheStatus::Invalid };
    let declared = (|| {
        if columns.is_null() || table_id.is_null() {
            return Err(NULL);
        }
        let mut specs = Vec::with_capacity(count);
        for (at, its) in slice::from_raw_parts(columns, count).iter().enumerate() {
            let (kind, _) = *Type::ALL
                .get(its.kind as usize)
                .ok_or(Error::fixed(Kind::Invalid, "a column has a type that there is not"))?;
            let role = match its.role {
                0 => Role::Tag,
                1 => Role::Field,
                2 => Role::Time,
                _ => return Err(Error::fixed(Kind::Invalid, "a column has a role that there is not")),
            };
            let digits = if decimals.is_null() { -1 } else { *decimals.add(at) };
            let decimals = u8::try_from(digits).ok();
            specs.push(ColumnSpec { name: text_of(its.name)?, kind, role, nullable: its.nullable, decimals });
        }
        *table_id = edge.connection.declare(text_of(table)?, &specs, create)?.0;
        Ok(())
    })();
    edge.said(declared)
}

/// Put `rows` rows into the ring as one record. Waits up to `wait_ms` for room; 0: not at all. Allocates nothing.
///
/// # Safety
/// `edge` is a handle; `columns` has `count` elements, whose pointers have what `rows` rows need.
#[no_mangle]
pub unsafe extern "C" fn yunhe_edge_write(
    edge: *mut YunheEdge,
    table_id: u32,
    rows: usize,
    columns: *const YunheColumn,
    count: usize,
    wait_ms: u32,
) -> YunheStatus {
    let Some(edge) = edge.as_mut() else { return YunheStatus::Invalid };
    if columns.is_null() {
        return edge.said(Err(NULL));
    }
    let columns = slice::from_raw_parts(columns, count);
    let written = edge
        .connection
        .write_with(Table(table_id), rows, count, wait_ms, |at, kind| column_of(&columns[at], kind, rows));
    edge.said(written.map(drop))
}

/// Put one row into the ring. Waits up to `wait_ms` for room; 0: not at all. Allocates nothing.
///
/// # Safety
/// `edge` is a handle; `values` has `count` elements, whose `text` has `length` bytes where it is used.
#[no_mangle]
pub unsafe extern "C" fn yunhe_edge_write_row(
    edge: *mut YunheEdge,
    table_id: u32,
    values: *const YunheValue,
    count: usize,
    wait_ms: u32,
) -> YunheStatus {
    let Some(edge) = edge.as_mut() else { return YunheStatus::Invalid };
    if values.is_null() {
        return edge.said(Err(NULL));
    }
    let values = slice::from_raw_parts(values, count);
    let written = edge.connection.write_row_with(Table(table_id), count, wait_ms, |at| value_of(&values[at]));
    edge.said(written.map(drop))
}

/// Wait up to `wait_ms` until all rows so far are stored, as durable as their tables' logs promise. Another status
/// than YUNHE_STATUS_UNAVAILABLE is of rows that the database refused since the last flush.
///
/// # Safety
/// `edge` is a handle.
#[no_mangle]
pub unsafe extern "C" fn yunhe_edge_flush(edge: *mut YunheEdge, wait_ms: u32) -> YunheStatus {
    let Some(edge) = edge.as_mut() else { return YunheStatus::Invalid };
    let flushed = edge.connection.flush(wait_ms);
    edge.said(flushed.map(drop))
}

/// The sentence about the last call that failed. Valid until the next call.
///
/// # Safety
/// `edge` is a handle.
#[no_mangle]
pub unsafe extern "C" fn yunhe_edge_error(edge: *const YunheEdge) -> *const c_char {
    edge.as_ref().map_or(c"the handle is NULL".as_ptr(), |edge| edge.error.as_ptr().cast())
}

/// Hang up. Rows in the ring are still taken; nobody says so. NULL is passed over.
///
/// # Safety
/// `edge` is a handle, and none any more afterwards.
#[no_mangle]
pub unsafe extern "C" fn yunhe_edge_close(edge: *mut YunheEdge) {
    if !edge.is_null() {
        drop(Box::from_raw(edge));
    }
}

unsafe fn text_of<'a>(text: *const c_char) -> Result<&'a str, Error> {
    if text.is_null() {
        return Err(NULL);
    }
    CStr::from_ptr(text).to_str().map_err(|_| Error::fixed(Kind::Invalid, "a name is not UTF-8"))
}

unsafe fn column_of<'a>(column: &YunheColumn, kind: Type, rows: usize) -> Result<Column<'a>, Error> {
    unsafe fn part<'a, T>(values: *const c_void, rows: usize) -> &'a [T] {
        slice::from_raw_parts(values.cast(), rows)
    }
    let at = column.values;
    if kind.has_text() && column.offsets.is_null() || at.is_null() && !kind.has_text() {
        return Err(NULL);
    }
    let values = match kind {
        Type::Int8 => Values::I8(part(at, rows)),
        Type::Int16 => Values::I16(part(at, rows)),
        Type::Int32 => Values::I32(part(at, rows)),
        Type::Uint8 => Values::U8(part(at, rows)),
        Type::Uint16 => Values::U16(part(at, rows)),
        Type::Uint32 => Values::U32(part(at, rows)),
        Type::Uint64 => Values::U64(part(at, rows)),
        Type::Float32 => Values::F32(part(at, rows)),
        Type::Float64 => Values::F64(part(at, rows)),
        Type::Bool => Values::Bool(part(at, rows)),
        Type::String | Type::Binary => {
            let offsets: &[u32] = part(column.offsets.cast(), rows + 1);
            let bytes = offsets[rows] as usize;
            if at.is_null() && bytes > 0 {
                return Err(NULL);
            }
            Values::Text { offsets, data: if bytes == 0 { &[] } else { part(at, bytes) } }
        }
        _ => Values::I64(part(at, rows)),
    };
    let validity = (!column.validity.is_null()).then(|| slice::from_raw_parts(column.validity, rows.div_ceil(8)));
    Ok(Column { values, validity })
}

unsafe fn value_of<'a>(value: &YunheValue) -> Result<Value<'a>, Error> {
    let bytes: &[u8] = match value.kind {
        5 | 6 if value.length == 0 => &[],
        5 | 6 if value.text.is_null() => return Err(NULL),
        5 | 6 => slice::from_raw_parts(value.text.cast(), value.length as usize),
        _ => &[],
    };
    Ok(match value.kind {
        0 => Value::Null,
        1 => Value::I64(value.i),
        2 => Value::U64(value.u),
        3 => Value::F64(value.f),
        4 => Value::Bool(value.i != 0),
        5 => Value::Str(std::str::from_utf8(bytes).map_err(|_| Error::fixed(Kind::Invalid, "a string is not UTF-8"))?),
        6 => Value::Bytes(bytes),
        _ => return Err(Error::fixed(Kind::Invalid, "a value of a kind that there is not")),
    })
}
