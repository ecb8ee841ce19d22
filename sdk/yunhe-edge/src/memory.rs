//! The shared memory as its writer sees it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{fence, AtomicU32, AtomicU64, Ordering};

use crate::error::{Error, Kind};
use crate::layout::{HEADER_BYTES, MAGIC, VERSION};

pub(crate) struct Memory {
    base: *mut u8,
    /// Of the ring without its header, a power of two.
    pub(crate) size: usize,
}

// The mapping is this value's own; its words are atomics.
unsafe impl Send for Memory {}

impl Memory {
    /// Map what the database has sent.
    pub(crate) fn map(fd: OwnedFd, size: usize) -> Result<Memory, Error> {
        let wrong = || Error::fixed(Kind::Invalid, "the database sent memory that is no ring of this version");
        if !size.is_power_of_two() || !(1 << 16..=1 << 30).contains(&size) {
            return Err(wrong());
        }
        let whole = HEADER_BYTES + size;
        // SAFETY: a fresh shared mapping of a file that is checked to be that long, and is sealed against shortening.
        let base = unsafe {
            let mut found: libc::stat = std::mem::zeroed();
            if libc::fstat(fd.as_raw_fd(), &mut found) != 0 || found.st_size as usize != whole {
                return Err(wrong());
            }
            let flags = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), whole, flags, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let memory = Memory { base: base.cast(), size };
        let mut preamble = [0u8; 24];
        // SAFETY: inside the mapping.
        unsafe { std::ptr::copy_nonoverlapping(memory.base, preamble.as_mut_ptr(), preamble.len()) };
        let word = |at: usize| u32::from_le_bytes(preamble[at..at + 4].try_into().unwrap());
        if &preamble[..8] != MAGIC
            || word(8) != VERSION
            || word(12) as usize != HEADER_BYTES
            || word(16) as usize != size
        {
            return Err(wrong());
        }
        Ok(memory)
    }

    pub(crate) fn long(&self, at: usize) -> &AtomicU64 {
        debug_assert!(at + 8 <= HEADER_BYTES && at % 8 == 0);
        // SAFETY: an aligned word of the mapping, which lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.base.add(at).cast()) }
    }

    pub(crate) fn word(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at + 4 <= HEADER_BYTES && at % 4 == 0);
        // SAFETY: as `long`.
        unsafe { AtomicU32::from_ptr(self.base.add(at).cast()) }
    }

    /// A part of the ring that only the writer uses now: reserved, and not published.
    pub(crate) fn part(&mut self, at: usize, length: usize) -> &mut [u8] {
        assert!(at <= self.size && length <= self.size - at);
        // SAFETY: inside the mapping; the reader touches nothing that is not published.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(HEADER_BYTES + at), length) }
    }

    /// Everything before is seen by the reader before anything after.
    pub(crate) fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `map`.
        unsafe { libc::munmap(self.base.cast(), HEADER_BYTES + self.size) };
    }
}
