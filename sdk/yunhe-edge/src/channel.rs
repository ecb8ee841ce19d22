//! Frames over the Unix socket beside the ring: `[length, u32][kind, u8][payload]`.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind};

pub(crate) const HELLO: u8 = 1;
pub(crate) const DECLARE: u8 = 2;
pub(crate) const FLUSH: u8 = 3;
pub(crate) const WAKE: u8 = 4;
pub(crate) const WELCOME: u8 = 128;
pub(crate) const DECLARED: u8 = 129;
pub(crate) const FLUSHED: u8 = 130;
pub(crate) const FAREWELL: u8 = 132;

const FRAME_BYTES_MAX: usize = 1 << 20;
const RECEIVED_BYTES: usize = 1 << 12;

pub(crate) const HUNG_UP: Error =
    Error::fixed(Kind::Unavailable, "the database has hung up; hint: connect again, what was not flushed may be lost");

pub(crate) struct Channel {
    sock: UnixStream,
    /// What has come and is no whole frame yet. With room for what a wait for room receives.
    waiting: Vec<u8>,
}

impl Channel {
    pub(crate) fn connect(path: &str) -> Result<Channel, Error> {
        let sock = UnixStream::connect(path)
            .map_err(|error| Error::said(Kind::Unavailable, format!("no database serves a ring at {path}: {error}")))?;
        sock.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(Channel { sock, waiting: Vec::with_capacity(4 * RECEIVED_BYTES) })
    }

    /// Send a frame. Allocates nothing for a payload of up to 11 bytes.
    pub(crate) fn send(&mut self, kind: u8, payload: &[u8]) -> Result<(), Error> {
        let mut small = [0u8; 16];
        let length = 5 + payload.len();
        let head = ((payload.len() + 1) as u32).to_le_bytes();
        let mut large;
        let frame = if length <= small.len() {
            &mut small[..length]
        } else {
            large = vec![0u8; length];
            &mut large[..]
        };
        frame[..4].copy_from_slice(&head);
        frame[4] = kind;
        frame[5..].copy_from_slice(payload);
        if self.sock.write_all(frame).is_err() {
            return Err(self.farewell().unwrap_or(HUNG_UP));
        }
        Ok(())
    }

    /// Wait for a frame of that kind; others are passed over, but a farewell is its error. None: not before `deadline`.
    pub(crate) fn expect(&mut self, wanted: u8, deadline: Instant) -> Result<Option<Vec<u8>>, Error> {
        loop {
            while let Some((kind, length)) = self.whole()? {
                if kind == wanted {
                    let payload = self.waiting[5..length].to_vec();
                    self.waiting.drain(..length);
                    return Ok(Some(payload));
                }
                self.pass(kind, length)?;
            }
            if !self.receive(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Return when the database has said anything, or at `deadline`. Allocates nothing.
    pub(crate) fn pause(&mut self, deadline: Instant) -> Result<(), Error> {
        self.receive(deadline)?;
        while let Some((kind, length)) = self.whole()? {
            self.pass(kind, length)?;
        }
        Ok(())
    }

    /// The reason that the database gave before it hung up.
    pub(crate) fn farewell(&mut self) -> Option<Error> {
        self.expect(FAREWELL, Instant::now() + Duration::from_millis(100)).err()
    }

    fn pass(&mut self, kind: u8, length: usize) -> Result<(), Error> {
        let said = (kind == FAREWELL).then(|| {
            let content = serde_json::from_slice(&self.waiting[5..length]).unwrap_or_default();
            Error::from_json(&content)
        });
        self.waiting.drain(..length);
        said.map_or(Ok(()), Err)
    }

    /// Kind and whole length of the first frame, if it is there.
    fn whole(&self) -> Result<Option<(u8, usize)>, Error> {
        let Some(head) = self.waiting.get(..5) else { return Ok(None) };
        let length = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
        if !(1..=FRAME_BYTES_MAX).contains(&length) {
            return Err(Error::fixed(Kind::Other, "the database sent a frame that is none"));
        }
        Ok((self.waiting.len() >= 4 + length).then_some((head[4], 4 + length)))
    }

    /// False: nothing has come by then.
    fn receive(&mut self, deadline: Instant) -> Result<bool, Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        self.sock.set_read_timeout(Some(left))?;
        let mut found = [0u8; RECEIVED_BYTES];
        match self.sock.read(&mut found) {
            Ok(0) => Err(HUNG_UP),
            Ok(count) => {
                self.waiting.extend_from_slice(&found[..count]);
                Ok(true)
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) =>
            {
                Ok(false)
            }
            Err(_) => Err(HUNG_UP),
        }
    }

    /// The first answer, with the memory's descriptor.
    pub(crate) fn welcome(&mut self) -> Result<(serde_json::Value, OwnedFd), Error> {
        self.sock.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut fd: Option<OwnedFd> = None;
        loop {
            if let Some((kind, length)) = self.whole()? {
                if kind != WELCOME {
                    self.pass(kind, length)?;
                    continue;
                }
                let content = serde_json::from_slice(&self.waiting[5..length]).unwrap_or_default();
                self.waiting.drain(..length);
                let fd = fd.ok_or(Error::fixed(Kind::Other, "the database sent no memory"))?;
                return Ok((content, fd));
            }
            let mut found = [0u8; RECEIVED_BYTES];
            let mut control = [0u64; 8];
            // SAFETY: buffers outlive the call; the descriptors received are owned from here on.
            let count = unsafe {
                let mut part = libc::iovec { iov_base: found.as_mut_ptr().cast(), iov_len: found.len() };
                let mut message: libc::msghdr = std::mem::zeroed();
                message.msg_iov = &mut part;
                message.msg_iovlen = 1;
                message.msg_control = control.as_mut_ptr().cast();
                message.msg_controllen = std::mem::size_of_val(&control) as _;
                let count = libc::recvmsg(self.sock.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC);
                if count > 0 {
                    let head = libc::CMSG_FIRSTHDR(&message);
                    if !head.is_null() && (*head).cmsg_type == libc::SCM_RIGHTS {
                        let its = libc::CMSG_DATA(head).cast::<libc::c_int>().read_unaligned();
                        fd = Some(OwnedFd::from_raw_fd(its));
                    }
                }
                count
            };
            if count <= 0 {
                return Err(HUNG_UP);
            }
            self.waiting.extend_from_slice(&found[..count as usize]);
        }
    }
}
