//! Takes one message: the step that creates a lease.

use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{self, OFlags};
use rustix::io::Errno;

use super::body::Body;
use super::files::{self, is_regular, written};
use super::history::History;
use super::movement::{Movement, Opened};
use super::name::{Name, second_after};
use super::opened::OpenedQueue;
use super::receipt::LeaseReceipt;
use super::{body, failures};
use crate::fault::{self, Step};
use crate::queue::Message;

/// If a message has no movement file, its sender may still be sending it for this long. After that,
/// the sender must have died. Python writes the message before its movement file.
const ABANDONED: Duration = Duration::from_secs(10);

/// The result of an attempt to lease a message.
pub(super) enum Taken {
    Leased(Message),
    /// Another process leased or deleted the message.
    Gone,
    /// Another process is sending or moving the message.
    Busy,
    /// The entry is not a message, despite its name: a directory, a link or a socket.
    Foreign,
}

impl OpenedQueue {
    /// Leases a message for `duration`. The message has been busy for `busy_for`.
    pub(super) fn take(
        &self,
        name: &Name,
        duration: Duration,
        busy_for: Duration,
    ) -> Result<Taken, Errno> {
        let (dirs, id) = (&*self.dirs, name.id());
        // If another host was faster, this first call fails.
        let file = match files::open(&dirs.queue, name.as_str(), OFlags::RDONLY) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Taken::Foreign),
            Err(Errno::NOENT) => return Ok(Taken::Gone),
            // A file server reserves the file for another client.
            Err(Errno::AGAIN) => return Ok(Taken::Busy),
            Err(errno) => return Err(errno),
        };

        let mut opened = Movement::open(dirs, id)?;
        let mut adopted = false;
        if let Opened::Missing = opened {
            match self.sender_is_gone(&file, busy_for)? {
                Some(true) => {}
                Some(false) => return Ok(Taken::Busy),
                None => return Ok(Taken::Foreign),
            }
            opened = Movement::open_or_create(dirs, id)?;
            adopted = true;
        }
        let Opened::Locked((movement, mut history)) = opened else {
            return Ok(Taken::Busy);
        };
        if history.is_empty() {
            if !adopted && self.sender_is_gone(&file, busy_for)? != Some(true) {
                return Ok(Taken::Busy);
            }
            movement.append(&name.line())?;
            history = History::of(name);
        }

        let (body, unread) = match body::read(&file, id)? {
            Body::NotAFile => return Ok(Taken::Foreign),
            Body::Text(body) => (body, None),
            Body::TooLong(size) => {
                let (problem, kept) = (body::too_long(name.as_str(), size), body::kept(id));
                let dir = dirs.path.display();
                (Bytes::new(), Some(format!("{problem}. The file is kept as {dir}/{kept}")))
            }
        };
        let leased = history.unused(name, second_after(self.now(), duration));
        if leased == *name {
            // There is no later time. A rename of a file to its own name would succeed for every
            // process.
            return Ok(Taken::Busy);
        }
        let redelivered = adopted || history.was_moved();
        let failures = match redelivered {
            true => failures::of(dirs, id)?,
            false => Vec::new(),
        };
        // Reasons may have been removed, or a killed host may have added only the reason.
        let attempts = u32::try_from(failures.len()).unwrap_or(u32::MAX).max(history.failed());
        // The line is written before the rename. A line whose name no file has is harmless, but
        // Python deletes a message by the names in this file.
        let end = if history.is_torn() { "\n" } else { "" };
        let line = format!("{end}{}", leased.line());
        movement.append(&line)?;
        fault::point(Step::LeaseNoted);
        let renamed = fs::renameat(&dirs.queue, name.as_str(), &dirs.queue, leased.as_str());
        if let Err(errno) = renamed {
            movement.take_back(line.len());
            if adopted {
                let _ = dirs.remove(&dirs.movement, id);
            }
            return match errno {
                Errno::NOENT => Ok(Taken::Gone),
                errno => Err(errno),
            };
        }
        fault::point(Step::LeaseRenamed);

        let receipt = LeaseReceipt {
            name: leased,
            since: history.len() + end.len(),
            redelivered,
            is_unread: unread.is_some(),
        };
        Ok(Taken::Leased(Message {
            id: id.to_owned(),
            body,
            unread,
            attempts,
            deaths: history.started().saturating_sub(attempts),
            unaccounted: 0,
            failures,
            receipt: receipt.encode(),
        }))
    }

    /// Whether no process is still sending this message or restoring the queue directory. Returns
    /// `None` if the entry is not a regular file.
    fn sender_is_gone(&self, file: &OwnedFd, busy_for: Duration) -> Result<Option<bool>, Errno> {
        let stat = fs::fstat(file)?;
        let age = self.now().saturating_sub(written(&stat));
        let is_gone = !self.may_be_incomplete() && (busy_for >= ABANDONED || age >= ABANDONED);
        Ok(is_regular(&stat).then_some(is_gone))
    }
}
