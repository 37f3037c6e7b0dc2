//! Sends a message: writes its file in the staging directory, creates its movement file, and
//! renames the file into the queue.

use rustix::fs::{self, OFlags};
use rustix::io::Errno;

use super::body;
use super::error::invalid;
use super::files::{FILE, write_all};
use super::movement::Movement;
use super::name::Name;
use super::opened::OpenedQueue;
use super::staging::Staging;
use crate::fault::{self, Step};
use crate::queue::{LONGEST_MESSAGE, QueueError};

impl OpenedQueue {
    /// Sends one message.
    pub(super) fn send(&self, body: &[u8]) -> Result<(), QueueError> {
        if body.len() > LONGEST_MESSAGE {
            let problem = format!(
                "a message of {} bytes is too long; at most {LONGEST_MESSAGE} are allowed. Put \
                 large data into an input",
                body.len()
            );
            return Err(invalid(&self.dirs.url, problem));
        }
        let sent = self.in_staging(|staging| {
            let id = uuid::Uuid::new_v4().to_string();
            let name = Name::new(0, &id);
            self.write_and_rename(staging, &name, body).inspect_err(|_| {
                // Files that cannot be removed now are removed with the directory.
                let _ = staging.discard(&id);
            })
        });
        sent.map_err(|errno| self.dirs.failed("sending a message", errno))
    }

    fn write_and_rename(&self, staging: &Staging, name: &Name, body: &[u8]) -> Result<(), Errno> {
        let id = name.id();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = fs::openat(staging.dir(), id, flags, FILE)?;
        write_all(&file, &body::with_id(body, id))?;
        if self.dirs.remote {
            // A network file system may report that the server is full only now.
            fs::fsync(&file)?;
        }
        drop(file);
        fault::point(Step::SendWritten);
        Movement::create(&self.dirs, name)?;
        fault::point(Step::SendNoted);
        fs::renameat(staging.dir(), id, &self.dirs.queue, name.as_str())?;
        fault::point(Step::SendRenamed);
        Ok(())
    }
}
