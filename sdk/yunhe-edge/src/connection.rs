//! A connection: its ring, the tables declared on it, and the way of a record into shared memory.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::channel::{Channel, DECLARE, DECLARED, FLUSH, FLUSHED, HELLO, HUNG_UP, WAKE};
use crate::error::{Error, Kind};
use crate::layout::{
    aligned, Role, Type, CLOSED, CONSUMED, HAS_NULLS, KIND_ROWS, PUBLISHED, READER_SLEEPS, RECORD_HEAD, ROWS_MAX,
    VERSION, WRAP, WRITER_WAITS,
};
use crate::memory::Memory;
use crate::record::{bitmaps, fixed_bytes, record_bytes, values_bytes, Column, Declared, Value};

/// A column as it is declared.
#[derive(Clone, Copy, Debug)]
pub struct ColumnSpec<'a> {
    pub name: &'a str,
    pub kind: Type,
    pub role: Role,
    pub nullable: bool,
    /// Of a field of floating point: to how many digits behind the point its values are rounded. None: as the table has
    /// it.
    pub decimals: Option<u8>,
}

impl<'a> ColumnSpec<'a> {
    /// One that may be null, unless it is the time.
    pub const fn new(name: &'a str, kind: Type, role: Role) -> Self {
        ColumnSpec { name, kind, role, nullable: !matches!(role, Role::Time), decimals: None }
    }

    /// The same, its values rounded to so many digits behind the point.
    pub const fn with_decimals(self, decimals: u8) -> Self {
        ColumnSpec { decimals: Some(decimals), ..self }
    }
}

/// A table that was declared on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table(pub(crate) u32);

/// A writer. For one thread at a time; several threads have a connection each.
pub struct Connection {
    channel: Channel,
    memory: Memory,
    tables: Vec<Vec<Declared>>,
    published: u64,
    records: u64,
    refused: u64,
}

impl Connection {
    /// Connect to the socket at `path`. `ring_bytes`: a power of two from 65,536; None: as the database has it.
    pub fn connect(path: &str, ring_bytes: Option<usize>) -> Result<Connection, Error> {
        let mut channel = Channel::connect(path)?;
        let hello = serde_json::json!({"version": VERSION, "ring_bytes": ring_bytes});
        channel.send(HELLO, hello.to_string().as_bytes())?;
        let (content, fd) = channel.welcome()?;
        let size = content["ring_bytes"].as_u64().unwrap_or(0) as usize;
        let memory = Memory::map(fd, size)?;
        Ok(Connection { channel, memory, tables: Vec::new(), published: 0, records: 0, refused: 0 })
    }

    /// Say which columns a table's records carry, in their order. `create`: a table that is not there is made, and
    /// fields that are not there are added.
    pub fn declare(&mut self, table: &str, columns: &[ColumnSpec], create: bool) -> Result<Table, Error> {
        let plain: Vec<_> = columns
            .iter()
            .map(|c| {
                serde_json::json!({
                    "name": c.name, "type": c.kind.name(), "role": c.role.name(), "nullable": c.nullable,
                    "decimals": c.decimals
                })
            })
            .collect();
        let content = serde_json::json!({"table": table, "columns": plain, "create": create});
        self.channel.send(DECLARE, content.to_string().as_bytes())?;
        let answer = self.answer(DECLARED, 10_000)?;
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
        if !answer["error"].is_null() {
            return Err(Error::from_json(&answer["error"]));
        }
        if answer["id"].as_u64() != Some(self.tables.len() as u64) {
            return Err(Error::fixed(Kind::Other, "the database numbers tables in another way than this code knows"));
        }
        let held = columns.iter().enumerate().map(|(at, column)| Declared {
            kind: column.kind,
            nullable: answer["columns"][at]["nullable"].as_bool().unwrap_or(column.nullable),
        });
        self.tables.push(held.collect());
        Ok(Table(self.tables.len() as u32 - 1))
    }

    /// Put rows into the ring as one record; returns its number. Waits up to `wait_ms` for room; 0: not at all.
    pub fn write(&mut self, table: Table, rows: usize, columns: &[Column], wait_ms: u32) -> Result<u64, Error> {
        self.write_with(table, rows, columns.len(), wait_ms, |at, _| Ok(columns[at]))
    }

    /// As `write`, of columns that are asked for one by one.
    pub(crate) fn write_with<'a>(
        &mut self,
        table: Table,
        rows: usize,
        count: usize,
        wait_ms: u32,
        column: impl Fn(usize, Type) -> Result<Column<'a>, Error>,
    ) -> Result<u64, Error> {
        let Some(declared) = self.tables.get(table.0 as usize) else { return Err(UNDECLARED) };
        if declared.len() != count {
            return Err(COUNT);
        }
        if !(1..=ROWS_MAX).contains(&rows) {
            return Err(Error::fixed(Kind::Invalid, "a record has 1 to 1,048,576 rows"));
        }
        let (mut text, mut nulls) = (0, false);
        for (at, its) in declared.iter().enumerate() {
            let found = column(at, its.kind)?;
            text += found.check(*its, rows)?;
            nulls |= found.validity.is_some();
        }
        let fixed = fixed_bytes(declared, rows, nulls);
        let (at, length) = self.reserve(record_bytes(fixed, text), wait_ms)?;
        let declared = &self.tables[table.0 as usize];
        let (head, body) = self.memory.part(at, length).split_at_mut(RECORD_HEAD);
        let (body, mut texts) = body.split_at_mut(fixed);
        let bitmap = rows.div_ceil(8);
        let mut place = bitmaps(count, rows, nulls);
        for (at, its) in declared.iter().enumerate() {
            let found = column(at, its.kind)?;
            if nulls {
                let bits = &mut body[at * bitmap..(at + 1) * bitmap];
                match found.validity {
                    Some(validity) => bits.copy_from_slice(&validity[..bitmap]),
                    None => bits.fill(0xFF),
                }
            }
            place = aligned(place, its.kind.width());
            let bytes = values_bytes(its.kind, rows);
            let (mine, others) = texts.split_at_mut(found.text_bytes());
            found.put(&mut body[place..place + bytes], mine);
            texts = others;
            place += bytes;
        }
        texts.fill(0);
        write_head(head, length, nulls, table, rows, text, self.records + 1);
        self.publish(at, length)
    }

    /// Put one row into the ring; returns the record's number. Waits up to `wait_ms` for room; 0: not at all.
    pub fn write_row(&mut self, table: Table, values: &[Value], wait_ms: u32) -> Result<u64, Error> {
        self.write_row_with(table, values.len(), wait_ms, |at| Ok(values[at]))
    }

    /// As `write_row`, of values that are asked for one by one.
    pub(crate) fn write_row_with<'a>(
        &mut self,
        table: Table,
        count: usize,
        wait_ms: u32,
        value: impl Fn(usize) -> Result<Value<'a>, Error>,
    ) -> Result<u64, Error> {
        let Some(declared) = self.tables.get(table.0 as usize) else { return Err(UNDECLARED) };
        if declared.len() != count {
            return Err(COUNT);
        }
        let (mut text, mut nulls) = (0, false);
        for (at, its) in declared.iter().enumerate() {
            let found = value(at)?;
            found.check(*its)?;
            text += found.text().len();
            nulls |= found.is_null();
        }
        let fixed = fixed_bytes(declared, 1, nulls);
        let (at, length) = self.reserve(record_bytes(fixed, text), wait_ms)?;
        let declared = &self.tables[table.0 as usize];
        let (head, body) = self.memory.part(at, length).split_at_mut(RECORD_HEAD);
        let (body, mut texts) = body.split_at_mut(fixed);
        let mut place = bitmaps(count, 1, nulls);
        for (at, its) in declared.iter().enumerate() {
            let found = value(at)?;
            if nulls {
                body[at] = u8::from(!found.is_null());
            }
            let width = its.kind.width();
            place = aligned(place, width);
            if its.kind.has_text() {
                let (mine, others) = texts.split_at_mut(found.text().len());
                mine.copy_from_slice(found.text());
                body[place..place + 4].fill(0);
                body[place + 4..place + 8].copy_from_slice(&(mine.len() as u32).to_le_bytes());
                texts = others;
            } else {
                let bytes = found.number(its.kind).unwrap_or_default();
                body[place..place + width].copy_from_slice(&bytes[..width]);
            }
            place += values_bytes(its.kind, 1);
        }
        texts.fill(0);
        write_head(head, length, nulls, table, 1, text, self.records + 1);
        self.publish(at, length)
    }

    /// Wait until all rows so far are stored, as durable as their tables' logs promise; returns the last record's
    /// number. An error of another kind than `Unavailable` is of rows that the database refused since the last flush.
    pub fn flush(&mut self, wait_ms: u32) -> Result<u64, Error> {
        if self.records == 0 {
            return Ok(0);
        }
        self.channel.send(FLUSH, &self.records.to_le_bytes())?;
        loop {
            let answer = self.answer(FLUSHED, wait_ms)?;
            if answer.len() < 16 {
                return Err(Error::fixed(Kind::Other, "the database sent an answer that is none"));
            }
            let stored = u64::from_le_bytes(answer[..8].try_into().unwrap());
            let refused = u64::from_le_bytes(answer[8..16].try_into().unwrap());
            if refused > self.refused {
                self.refused = refused;
                return Err(Error::from_json(&serde_json::from_slice(&answer[16..]).unwrap_or_default()));
            }
            if stored >= self.records {
                return Ok(stored);
            }
        }
    }

    /// Records in the ring since the start; the last one's number.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Bytes of the ring.
    pub fn ring_bytes(&self) -> usize {
        self.memory.size
    }

    fn answer(&mut self, kind: u8, wait_ms: u32) -> Result<Vec<u8>, Error> {
        let deadline = Instant::now() + Duration::from_millis(wait_ms.into());
        let found = self.channel.expect(kind, deadline)?;
        found.ok_or(Error::fixed(Kind::Unavailable, "the database did not answer in time"))
    }

    /// Room for a record: its place in the ring, and its length.
    fn reserve(&mut self, length: usize, wait_ms: u32) -> Result<(usize, usize), Error> {
        let size = self.memory.size;
        if length > size / 2 {
            return Err(Error::fixed(
                Kind::Invalid,
                "a record takes more than half of the ring; hint: write fewer rows",
            ));
        }
        if self.memory.word(CLOSED).load(Ordering::Relaxed) != 0 {
            return Err(self.channel.farewell().unwrap_or(HUNG_UP));
        }
        let at = self.published as usize & (size - 1);
        let skipped = if length > size - at { size - at } else { 0 };
        if self.used() + skipped + length > size {
            self.wait_for_room(skipped + length, wait_ms)?;
        }
        if skipped > 0 {
            self.memory.part(at, 4).copy_from_slice(&WRAP.to_le_bytes());
            return Ok((0, length));
        }
        Ok((at, length))
    }

    fn used(&self) -> usize {
        // What the reader has copied by now may be written over.
        (self.published - self.memory.long(CONSUMED).load(Ordering::Acquire).min(self.published)) as usize
    }

    fn wait_for_room(&mut self, need: usize, wait_ms: u32) -> Result<(), Error> {
        let deadline = Instant::now() + Duration::from_millis(wait_ms.into());
        loop {
            self.memory.word(WRITER_WAITS).store(1, Ordering::Relaxed);
            self.memory.fence();
            if self.used() + need <= self.memory.size {
                self.memory.word(WRITER_WAITS).store(0, Ordering::Relaxed);
                return Ok(());
            }
            self.channel.send(WAKE, &[])?;
            if Instant::now() >= deadline {
                return Err(Error::fixed(Kind::Full, "the ring is full; hint: write slower, or wait for room"));
            }
            self.channel.pause(deadline)?;
        }
    }

    /// Let the reader have the record.
    fn publish(&mut self, at: usize, length: usize) -> Result<u64, Error> {
        let record = self.memory.part(at, length);
        let crc = crc32c::crc32c(&record[8..]);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
        let before = self.used();
        let size = self.memory.size;
        let skipped = if at == 0 { (size - (self.published as usize & (size - 1))) & (size - 1) } else { 0 };
        self.published += (skipped + length) as u64;
        self.memory.long(PUBLISHED).store(self.published, Ordering::Release);
        self.records += 1;
        self.memory.fence();
        let sleeps = self.memory.word(READER_SLEEPS);
        let (half, now) = (size / 2, before + skipped + length);
        if sleeps.load(Ordering::Relaxed) != 0 {
            sleeps.store(0, Ordering::Relaxed);
            self.channel.send(WAKE, &[])?;
        } else if before < half && half <= now {
            self.channel.send(WAKE, &[])?;
        }
        Ok(self.records)
    }

    /// Put half of a record into the ring and return: what a writer leaves that is killed at that moment.
    #[doc(hidden)]
    pub fn write_torn(&mut self) {
        let at = self.published as usize & (self.memory.size - 1);
        let room = (self.memory.size - at).min(200);
        self.memory.part(at, room).fill(0xA5);
    }
}

const UNDECLARED: Error = Error::fixed(Kind::Invalid, "the table is not declared on this connection");
const COUNT: Error = Error::fixed(Kind::Invalid, "there are not as many columns as the table was declared with");

fn write_head(head: &mut [u8], length: usize, nulls: bool, table: Table, rows: usize, text: usize, number: u64) {
    head[..4].copy_from_slice(&(length as u32).to_le_bytes());
    head[8..10].copy_from_slice(&KIND_ROWS.to_le_bytes());
    head[10..12].copy_from_slice(&(if nulls { HAS_NULLS } else { 0 }).to_le_bytes());
    head[12..16].copy_from_slice(&table.0.to_le_bytes());
    head[16..20].copy_from_slice(&(rows as u32).to_le_bytes());
    head[20..24].copy_from_slice(&(text as u32).to_le_bytes());
    head[24..32].copy_from_slice(&number.to_le_bytes());
}
