//! Hands rows to a Yunhe edge database on the same machine, through shared memory.
//!
//! ```no_run
//! use yunhe_edge::{Column, ColumnSpec, Connection, Role, Type, Value, Values};
//!
//! let mut edge = Connection::connect("/run/yunhe/ring.sock", None)?;
//! let speed = edge.declare("speed", &[
//!     ColumnSpec::new("ts", Type::TimestampMs, Role::Time),
//!     ColumnSpec::new("kmh", Type::Float32, Role::Field),
//! ], true)?;
//! edge.write_row(speed, &[Value::I64(1_760_000_000_000), Value::F64(88.5)], 0)?;
//! edge.write(speed, 2, &[
//!     Column::of(Values::I64(&[1_760_000_000_010, 1_760_000_000_020])),
//!     Column::of(Values::F32(&[88.6, 88.7])),
//! ], 1_000)?;
//! edge.flush(5_000)?;
//! # Ok::<(), yunhe_edge::Error>(())
//! ```
//!
//! `write` and `write_row` allocate nothing, and make no system call while the database keeps up. `docs/ring.md`
//! describes the memory byte for byte; begin with [`Connection`].

mod channel;
mod connection;
mod error;
pub mod ffi;
mod layout;
mod memory;
mod record;

pub use connection::{ColumnSpec, Connection, Table};
pub use error::{Error, Kind};
pub use layout::{Role, Type};
pub use record::{Column, Value, Values};
