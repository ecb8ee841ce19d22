//! What can go wrong, by what the caller must do.

use std::borrow::Cow;
use std::fmt;

/// As the database's own kinds of error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No room in the ring, or none in the database: write slower, or wait.
    Full,
    /// The input is wrong; nothing was taken.
    Invalid,
    /// There is no such table or column.
    NotFound,
    /// The database does not answer, or has hung up: connect again. What was not flushed may be lost.
    Unavailable,
    /// Anything else that the database said.
    Other,
}

/// One clear sentence. Those of the hot path are static: making one allocates nothing.
#[derive(Clone, Debug)]
pub struct Error {
    pub kind: Kind,
    pub message: Cow<'static, str>,
}

impl Error {
    pub(crate) const fn fixed(kind: Kind, message: &'static str) -> Self {
        Error { kind, message: Cow::Borrowed(message) }
    }

    pub(crate) fn said(kind: Kind, message: String) -> Self {
        Error { kind, message: Cow::Owned(message) }
    }

    /// The error in a message of the database.
    pub(crate) fn from_json(content: &serde_json::Value) -> Self {
        let kind = match content["kind"].as_str() {
            Some("Full") => Kind::Full,
            Some("Invalid") => Kind::Invalid,
            Some("NotFound") => Kind::NotFound,
            Some("Unavailable") => Kind::Unavailable,
            _ => Kind::Other,
        };
        let mut message = content["message"].as_str().unwrap_or("the database gave no reason").to_owned();
        if let Some(hint) = content["hint"].as_str() {
            message.push_str("; hint: ");
            message.push_str(hint);
        }
        Error::said(kind, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Error::said(Kind::Unavailable, format!("the database cannot be reached: {error}"))
    }
}
