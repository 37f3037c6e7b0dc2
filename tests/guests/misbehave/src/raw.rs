//! Actions that call the host's interfaces directly, in ways that no standard library would.

use serde::{Deserialize, Serialize};

/// The calls to make. Everything that a call creates is kept until the end.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Call {
    /// Creates `files` files with long names in a directory, and `count` streams of its entries,
    /// each of which is read once. Reports `{"made", "error"}`. `error` is the first one.
    DirectoryStreams { count: u32, files: u32 },
    /// Opens one output this many times, and closes none. Reports `{"made", "error"}`.
    OpenFiles { count: u32 },
    /// Does the same, but rejects the task with the error.
    OpenFilesOrReject { count: u32 },
    /// Does the same, and never ends.
    OpenFilesAndWait { count: u32 },
    /// Opens two files, closes one, and so on, this many times.
    OpenFilesInTurn { count: u32 },
    /// Creates this many streams for the log.
    Handles { count: u32 },
    /// Creates this many timers, and waits for all of them together.
    Timers { count: u32 },
    /// Asks for this many random bytes in one call.
    Random { bytes: u64 },
    /// Does the same with the interface for insecure random numbers.
    InsecureRandom { bytes: u64 },
    /// Writes this many bytes to an output in one call.
    WriteAtOnce { bytes: u32 },
    /// Reads this many bytes in one call, from an output of this size. Reports `{"read"}`.
    ReadAtOnce { bytes: u64 },
    /// Writes this many zeros to a stream, without passing any bytes.
    WriteZeros { bytes: u64 },
    /// Writes empty buffers to its log and to an output, this many times.
    EmptyWrites { count: u32 },
    /// Moves this many bytes from an output of 1 MiB to another output in one call. Reports
    /// `{"moved"}`.
    Splice { bytes: u64 },
    /// Skips this many bytes of an output of 1 MiB in one call. Reports `{"skipped"}`.
    Skip { bytes: u64 },
    /// Polls an empty list.
    PollNothing,
    /// Drops a stream while a timer waits for it.
    DropParent,
    /// Reads, writes and sets the size at offsets near the maximum.
    FarOffsets,
    /// Calls every function that takes a path with a path of this many bytes, made of `piece`.
    /// Reports `{call: code}`.
    LongPaths { bytes: usize, piece: String },
    /// Opens a file, a directory, an input and a new name with all combinations of flags. Reports
    /// `{"PATH FLAGS": code}`, and to what the length of a read-only file can be set.
    Open,
    /// Reports the metadata of each input and of an output: `{name: {"links", "times", "number"}}`.
    Stat,
    /// Reports the text of a stream's error, `{"words"}`.
    ErrorWords,
    /// Creates this many sockets of both kinds, and looks up a name. Reports `{what: code}`.
    Sockets { count: u32 },
}

#[cfg(not(target_os = "wasi"))]
pub(crate) fn perform(
    call: &Call,
    _: &task_host_sdk::Task<crate::Action>,
) -> task_host_sdk::Result<()> {
    Err(task_host_sdk::Error::reject(format!("{call:?}: there is no host to call")))
}

#[cfg(target_os = "wasi")]
pub(crate) use wasi::perform;

#[cfg(target_os = "wasi")]
mod wasi {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};
    use task_host_sdk::{Error, Result, Task};
    use wasip2::cli::stdout;
    use wasip2::clocks::monotonic_clock;
    use wasip2::filesystem::preopens::get_directories;
    use wasip2::filesystem::types::{
        Descriptor, DescriptorFlags as Flags, ErrorCode, NewTimestamp, OpenFlags as Open, PathFlags,
    };
    use wasip2::io::poll;
    use wasip2::io::streams::{InputStream, StreamError};
    use wasip2::sockets::{
        instance_network, ip_name_lookup, network, tcp_create_socket, udp_create_socket,
    };

    use super::Call;
    use crate::Action;

    type Made<T> = std::result::Result<T, ErrorCode>;

    pub(crate) fn perform(call: &Call, task: &Task<Action>) -> Result<()> {
        let report = match call {
            Call::DirectoryStreams { count, files } => streams(*count, *files),
            Call::OpenFiles { count } => told(&opened(*count)),
            Call::OpenFilesOrReject { count } => match opened(*count) {
                (kept, Some(error)) => {
                    let text = format!("{} are open, and another can't be: {error:?}", kept.len());
                    return Err(Error::reject(text));
                }
                kept => told(&kept),
            },
            Call::OpenFilesAndWait { count } => {
                let _kept = opened(*count);
                task_host_sdk::info!("all are open");
                monotonic_clock::subscribe_duration(u64::MAX).block();
                json!(null)
            }
            Call::OpenFilesInTurn { count } => {
                let last = std::cell::RefCell::new(None);
                let made = kept(*count, || {
                    open("f", Open::CREATE).map(|file| drop(last.replace(Some(file))))
                });
                told(&made)
            }
            Call::Handles { count } => {
                let kept: Vec<_> = (0..*count).map(|_| stdout::get_stdout()).collect();
                json!({"made": kept.len()})
            }
            Call::Timers { count } => {
                let timer = |_| monotonic_clock::subscribe_duration(3_600_000_000_000);
                let mut kept: Vec<_> = (0..*count).map(timer).collect();
                kept.push(monotonic_clock::subscribe_duration(1));
                json!({"ready": poll::poll(&kept.iter().collect::<Vec<_>>())})
            }
            Call::Random { bytes } => {
                json!({"bytes": wasip2::random::random::get_random_bytes(*bytes).len()})
            }
            Call::InsecureRandom { bytes } => {
                json!({"bytes": wasip2::random::insecure::get_insecure_random_bytes(*bytes).len()})
            }
            Call::WriteAtOnce { bytes } => {
                let file = open("f", Open::CREATE);
                let all = vec![b'x'; *bytes as usize];
                json!({"written": file.and_then(|file| file.write(&all, 0)).ok()})
            }
            Call::ReadAtOnce { bytes } => {
                let read = open("f", Open::CREATE)
                    .and_then(|file| file.set_size(*bytes).and_then(|()| file.read(*bytes, 0)));
                json!({"read": read.map(|(bytes, _)| bytes.len()).ok()})
            }
            Call::WriteZeros { bytes } => {
                let file = open("f", Open::CREATE).expect("an output can be made");
                let stream = file.write_via_stream(0).expect("a stream");
                json!({"written": stream.write_zeroes(*bytes).is_ok()})
            }
            Call::EmptyWrites { count } => {
                let file = open("f", Open::CREATE).expect("an output can be made");
                let streams = [stdout::get_stdout(), file.write_via_stream(0).expect("a stream")];
                let written = |n| streams[n as usize % 2].write(&[]).is_ok();
                json!({"written": (0..*count).filter(|n| written(*n)).count()})
            }
            Call::Splice { bytes } => {
                let to = open("to", Open::CREATE).expect("an output can be made");
                let stream = to.write_via_stream(0).expect("a stream");
                json!({"moved": stream.splice(&large(), *bytes).ok()})
            }
            Call::Skip { bytes } => json!({"skipped": large().skip(*bytes).ok()}),
            Call::PollNothing => json!({"ready": poll::poll(&[])}),
            Call::DropParent => {
                let stream = large();
                let waits = stream.subscribe();
                drop(stream);
                json!({"ready": waits.ready()})
            }
            Call::FarOffsets => far_offsets(),
            Call::LongPaths { bytes, piece } => long_paths(&piece.repeat(bytes / piece.len())),
            Call::Open => flags(task),
            Call::Stat => stat(task),
            Call::ErrorWords => error_words(),
            Call::Sockets { count } => sockets(*count),
        };
        task.write("report.json", report.to_string())
    }

    fn directory(name: &str) -> Descriptor {
        let given = get_directories().into_iter().find(|(_, given)| given == name);
        given.expect("the directory is given").0
    }

    fn open(name: &str, flags: Open) -> Made<Descriptor> {
        directory("/outputs").open_at(PathFlags::empty(), name, flags, Flags::READ | Flags::WRITE)
    }

    /// A stream that reads an output of 1 MiB.
    fn large() -> InputStream {
        let file = open("from", Open::CREATE).expect("an output can be made");
        file.set_size(1 << 20).expect("an output can be larger");
        file.read_via_stream(0).expect("a stream")
    }

    fn far_offsets() -> Value {
        let file = open("f", Open::CREATE).expect("an output can be made");
        file.write(b"x", 0).expect("an output can be written");
        for far in [u64::MAX, u64::MAX - 1, 1 << 63, i64::MAX as u64] {
            let _ = file.read(1, far);
            let _ = file.write(b"x", far);
            let _ = file.set_size(far);
            let _ = file.write_via_stream(far).map(|s| s.blocking_write_and_flush(b"x"));
        }
        json!(null)
    }

    /// Creates `count` objects, or as many as possible.
    fn kept<T>(count: u32, mut make: impl FnMut() -> Made<T>) -> (Vec<T>, Option<ErrorCode>) {
        let mut kept = Vec::new();
        for _ in 0..count {
            match make() {
                Ok(made) => kept.push(made),
                Err(error) => return (kept, Some(error)),
            }
        }
        (kept, None)
    }

    fn told<T>((kept, error): &(Vec<T>, Option<ErrorCode>)) -> Value {
        json!({"made": kept.len(), "error": error.map(|error| error.name())})
    }

    fn opened(count: u32) -> (Vec<Descriptor>, Option<ErrorCode>) {
        let outputs = directory("/outputs");
        let flags = Flags::READ | Flags::WRITE;
        kept(count, || outputs.open_at(PathFlags::empty(), "f", Open::CREATE, flags))
    }

    fn streams(count: u32, files: u32) -> Value {
        let outputs = directory("/outputs");
        for n in 0..files {
            let made = open(&format!("{n:0>250}"), Open::CREATE);
            made.expect("an output can be made");
        }
        let made = kept(count, || {
            let stream = outputs.read_directory()?;
            stream.read_directory_entry()?;
            Ok(stream)
        });
        told(&made)
    }

    fn code<T>(result: Made<T>) -> Value {
        match result {
            Ok(_) => json!("ok"),
            Err(error) => json!(error.name()),
        }
    }

    fn long_paths(path: &str) -> Value {
        let at = directory("/outputs");
        let none = PathFlags::empty();
        let now = NewTimestamp::Now;
        let file = open("f", Open::CREATE).expect("an output can be made");
        drop(file);
        json!({
            "open": code(at.open_at(none, path, Open::empty(), Flags::READ)),
            "create": code(at.open_at(none, path, Open::CREATE, Flags::WRITE)),
            "make-directory": code(at.create_directory_at(path)),
            "stat": code(at.stat_at(none, path)),
            "rename": code(at.rename_at(path, &at, "y")),
            "rename-to": code(at.rename_at("f", &at, path)),
            "link": code(at.link_at(none, path, &at, "y")),
            "link-to": code(at.link_at(none, "f", &at, path)),
            "symlink": code(at.symlink_at("f", path)),
            "symlink-of": code(at.symlink_at(path, "y")),
            "readlink": code(at.readlink_at(path)),
            "unlink": code(at.unlink_file_at(path)),
            "remove-directory": code(at.remove_directory_at(path)),
            "set-times": code(at.set_times_at(none, path, now, now)),
            "hash": code(at.metadata_hash_at(none, path)),
        })
    }

    fn flags(task: &Task<Action>) -> Value {
        let (inputs, outputs) = (directory("/inputs"), directory("/outputs"));
        outputs.create_directory_at("dir").expect("a directory can be made");
        open("file", Open::CREATE).expect("an output can be made");
        let mut report = BTreeMap::new();
        let input = task.inputs().next().map(|input| input.key().to_owned());
        let places = [
            ("dir", &outputs, "dir"),
            ("file", &outputs, "file"),
            ("new", &outputs, "new"),
            ("input", &inputs, input.as_deref().unwrap_or("none")),
            ("new-input", &inputs, "new"),
        ];
        for (what, at, path) in places {
            for (name, open) in [
                ("none", Open::empty()),
                ("create", Open::CREATE),
                ("create directory", Open::CREATE | Open::DIRECTORY),
                ("create exclusive", Open::CREATE | Open::EXCLUSIVE),
                ("directory", Open::DIRECTORY),
                ("directory exclusive", Open::DIRECTORY | Open::EXCLUSIVE),
                ("directory truncate", Open::DIRECTORY | Open::TRUNCATE),
                ("truncate", Open::TRUNCATE),
            ] {
                let opened = at.open_at(PathFlags::empty(), path, open, Flags::READ);
                report.insert(format!("{what} {name}"), code(opened));
                let _ = outputs.unlink_file_at("new");
            }
        }
        let none = PathFlags::empty();
        let read = outputs.open_at(none, "file", Open::empty(), Flags::READ);
        let read = read.expect("a file can be read");
        report.insert("set-size".to_owned(), code(read.set_size(10)));
        report.insert("write".to_owned(), code(read.write(b"x", 0)));
        let both = open("file", Open::empty()).expect("a file can be written");
        report.insert("set-size of a writable".to_owned(), code(both.set_size(10)));
        if let Some(input) = &input {
            let file = inputs.open_at(none, input, Open::empty(), Flags::READ);
            let set = file.and_then(|file| file.set_size(10));
            report.insert("set-size of an input".to_owned(), code(set));
        }
        report.insert("set-size of a directory".to_owned(), code(outputs.set_size(10)));
        outputs.unlink_file_at("file").expect("a file can be removed");
        outputs.remove_directory_at("dir").expect("a directory can be removed");
        json!(report)
    }

    fn stat(task: &Task<Action>) -> Value {
        open("f", Open::CREATE).expect("an output can be made");
        let mut report = BTreeMap::new();
        let mut tell = |at: &Descriptor, path: &str| {
            let stat = at.stat_at(PathFlags::empty(), path).expect("a file's state");
            let number = at.metadata_hash_at(PathFlags::empty(), path).expect("a file's number");
            let times = [
                stat.data_access_timestamp,
                stat.data_modification_timestamp,
                stat.status_change_timestamp,
            ];
            let times = times.map(|at| at.map(|at| at.seconds));
            report.insert(
                path.to_owned(),
                json!({"links": stat.link_count, "times": times, "size": stat.size,
                    "number": [number.lower.to_string(), number.upper.to_string()]}),
            );
        };
        let inputs = directory("/inputs");
        for input in task.inputs() {
            tell(&inputs, input.key());
        }
        tell(&directory("/outputs"), "f");
        json!(report)
    }

    fn words<T>(result: std::result::Result<T, StreamError>) -> Option<String> {
        match result {
            Err(StreamError::LastOperationFailed(error)) => Some(error.to_debug_string()),
            _ => None,
        }
    }

    fn error_words() -> Value {
        let file = open("f", Open::CREATE).expect("an output can be made");
        let far = file.read_via_stream(1 << 63).expect("a stream");
        json!({"words": words(far.blocking_read(1))})
    }

    fn sockets(count: u32) -> Value {
        fn refused<T>(result: std::result::Result<T, network::ErrorCode>) -> Option<&'static str> {
            result.err().map(|error| error.name())
        }
        let family = network::IpAddressFamily::Ipv4;
        let (mut tcp, mut udp) = (None, None);
        for _ in 0..count {
            tcp = refused(tcp_create_socket::create_tcp_socket(family));
            udp = refused(udp_create_socket::create_udp_socket(family));
        }
        let network = instance_network::instance_network();
        let name = refused(ip_name_lookup::resolve_addresses(&network, "localhost"));
        json!({"tcp": tcp, "udp": udp, "name": name})
    }
}
