//! What `sdk/check.py` runs: `writer SOCKET TABLE ROWS [kill]`. Half of the rows one by one, the other half as records
//! of a hundred, in column form; then a flush, or its own death in the middle of a record. Between the two it counts its allocations: none.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use yunhe_edge::{Column, ColumnSpec, Connection, Error, Kind, Role, Type, Value, Values};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        System.alloc(layout)
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        System.dealloc(at, layout)
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> Result<(), Error> {
    let given: Vec<String> = std::env::args().collect();
    let rows: i64 = given[3].parse().unwrap();
    // The smallest ring: it fills up and wraps many times, so that waits for room are counted as well.
    let mut edge = Connection::connect(&given[1], Some(1 << 16))?;
    let columns = [
        ColumnSpec::new("car", Type::String, Role::Tag),
        ColumnSpec::new("ts", Type::TimestampMs, Role::Time),
        ColumnSpec::new("kmh", Type::Float64, Role::Field),
        ColumnSpec::new("on", Type::Bool, Role::Field),
    ];
    let table = edge.declare(&given[2], &columns, true)?;
    let wrong = edge.write_row(table, &[Value::Null, Value::Null, Value::Null, Value::Null], 0).unwrap_err();
    assert_eq!(wrong.kind, Kind::Invalid);

    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for at in 0..rows / 2 {
        let kmh = if at % 3 == 0 { Value::Null } else { Value::F64(at as f64 / 2.0) };
        edge.write_row(table, &[Value::Str("c-é"), Value::I64(at), kmh, Value::Bool(at % 2 == 0)], 10_000)?;
    }
    let mut at = rows / 2;
    while at < rows {
        let count = (rows - at).min(100) as usize;
        let (mut ts, mut kmh, mut on, mut there) = ([0i64; 100], [0f64; 100], [0u8; 100], [0u8; 13]);
        for row in 0..count {
            let number = at + row as i64;
            (ts[row], kmh[row], on[row]) = (number, number as f64 / 2.0, u8::from(number % 2 == 0));
            there[row / 8] |= u8::from(number % 3 != 0) << (row % 8);
        }
        let data = [
            Column::of(Values::Str(&["c-é"; 100][..count])),
            Column::of(Values::I64(&ts[..count])),
            Column { values: Values::F64(&kmh[..count]), validity: Some(&there) },
            Column::of(Values::Bool(&on[..count])),
        ];
        edge.write(table, count, &data, 10_000)?;
        at += count as i64;
    }
    let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert_eq!(allocated, 0, "the hot path allocated {allocated} times");
    if given.len() > 4 {
        edge.flush(10_000)?;
        edge.write_torn();
        std::process::abort();
    }
    edge.flush(10_000)?;
    Ok(())
}
