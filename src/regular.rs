//! Opening files in places that others can write to.
//!
//! Opening a pipe blocks until its other end is opened, or unblocks a program at that end; opening a device can have
//! any effect. A file that is read must be neither, and may be replaced by one between two system calls.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Dir, Mode, OFlags, ResolveFlags, SeekFrom, fcntl_getfl, fcntl_setfl, openat2, seek};
use rustix::io::Errno;

/// Opens a regular file for reading; never blocks.
///
/// # Errors
/// If the file cannot be opened, or is not a regular one.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let is_regular = |meta: &fs::Metadata| {
        if meta.is_file() { Ok(()) } else { Err(io::Error::other("not a regular file")) }
    };
    is_regular(&fs::metadata(path)?)?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    is_regular(&file.metadata()?)?;
    Ok(file)
}

/// Reads a small regular file; never blocks.
///
/// # Errors
/// If the file cannot be read, is not a regular one, or has more than `most` bytes.
pub(crate) fn read_small(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

/// How long a pipe may be without a writer, or without anything written to it.
const LONGEST_SILENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Opens a file for reading that may also be a pipe, such as the shell's `<(command)`; does not wait long for its other end.
///
/// # Errors
/// If the file cannot be opened, or nothing is written to the pipe.
pub(crate) fn open_or_pipe(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        let mut waiting = [PollFd::new(&file, PollFlags::IN)];
        if poll(&mut waiting, Some(&LONGEST_SILENCE))? == 0 {
            return Err(io::Error::other("nothing was written to the pipe within 10 seconds"));
        }
    }
    let flags = fcntl_getfl(&file)?;
    fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

/// Opens a regular file for reading by its path below `root`, which no link can escape; never blocks.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_inside(root: &Path, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let root = openat2(CWD, root, flags | OFlags::DIRECTORY, Mode::empty(), ResolveFlags::empty())?;
    // Nonblocking, so that a pipe of that name does not block.
    let file = openat2(root, path, flags | OFlags::NONBLOCK, Mode::empty(), ResolveFlags::IN_ROOT)?;
    let file = File::from(file);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Names in a directory by its path below `root`, which no link can escape.
///
/// # Errors
/// If the directory cannot be opened.
pub(crate) fn read_directory_inside(root: &Path, path: &Path) -> io::Result<Vec<OsString>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let root = openat2(CWD, root, flags, Mode::empty(), ResolveFlags::empty())?;
    let directory = openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    let names = Dir::new(directory)?.filter_map(|entry| {
        let entry = entry.ok()?;
        Some(OsStr::from_bytes(entry.file_name().to_bytes()).to_os_string())
    });
    Ok(names.take(MAX_NAMES).collect())
}

/// Entries of one directory.
const MAX_NAMES: usize = 10_000;

/// The largest file that is read. Few programs are larger with all their debug information; a sparse file can have any
/// size, and allocating memory for it would end the exporter.
const MAX_BYTES: u64 = 4 << 30;

/// Reads all of an open file, regardless of its position. Holes take up no memory.
///
/// # Errors
/// If the file cannot be read, or is too large.
pub(crate) fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    if length > MAX_BYTES {
        let reason =
            format!("it has {} GiB; files of more than {} GiB are not read", length >> 30, MAX_BYTES >> 30);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    let length = usize::try_from(length).map_err(io::Error::other)?;
    // Without enough memory, this is an error here; the allocation below would end the process.
    let room = Vec::<u8>::new().try_reserve_exact(length);
    room.map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
    let mut bytes = vec![0; length];
    let mut at = 0;
    while at < length {
        let data = match seek(file, SeekFrom::Data(at as u64)) {
            Ok(data) => (data as usize).clamp(at, length),
            Err(Errno::NXIO) => break,
            // The file system does not support it.
            Err(_) => at,
        };
        let hole = seek(file, SeekFrom::Hole(data as u64)).map_or(length, |hole| hole as usize);
        let end = hole.clamp(data, length);
        at = data;
        while at < end {
            match file.read_at(&mut bytes[at..end], at as u64) {
                // It has been truncated.
                Ok(0) => {
                    bytes.truncate(at);
                    return Ok(bytes);
                }
                Ok(read) => at += read,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        at = at.max(end);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> io::Result<Vec<u8>> {
        read_all(&open(path)?)
    }

    #[test]
    fn pipe_without_a_writer_is_rejected_immediately() {
        let directory = tempfile::tempdir().unwrap();
        let (pipe, file) = (directory.path().join("pipe"), directory.path().join("file"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        fs::write(&file, "text").unwrap();
        assert_eq!(open(&pipe).unwrap_err().to_string(), "not a regular file");
        assert_eq!(open(Path::new("/dev/zero")).unwrap_err().to_string(), "not a regular file");
        assert_eq!(open(directory.path()).unwrap_err().to_string(), "not a regular file");
        assert_eq!(read(&file).unwrap(), b"text");
    }

    #[test]
    fn small_file_is_read_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("key"), "secret").unwrap();
        File::create(at("huge")).unwrap().set_len(1 << 40).unwrap();
        rustix::fs::mknodat(CWD, at("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        std::os::unix::fs::symlink(at("loop"), at("loop")).unwrap();
        std::os::unix::fs::symlink(at("key"), at("link")).unwrap();
        let read = |path: &Path| read_small(path, 6).map_err(|err| err.to_string());
        assert_eq!(read(&at("key")).unwrap(), b"secret");
        assert_eq!(read(&at("link")).unwrap(), b"secret");
        assert_eq!(read_small(&at("key"), 5).unwrap_err().to_string(), "it has more than 5 bytes");
        assert_eq!(read(&at("huge")).unwrap_err(), "it has more than 6 bytes");
        for path in [at("pipe"), directory.path().to_owned(), "/dev/zero".into()] {
            assert_eq!(read(&path).unwrap_err(), "not a regular file");
        }
        assert!(read(&at("loop")).unwrap_err().contains("Too many levels of symbolic links"));
        assert!(read(&at("gone")).unwrap_err().contains("No such file"));
    }

    #[test]
    fn holes_read_as_zeros_without_using_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sparse");
        let file = File::create(&path).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"middle", 2 << 30).unwrap();
        file.set_len(3 << 30).unwrap();
        let resident = || {
            let statm = fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
        };
        let before = resident();
        let bytes = read(&path).unwrap();
        assert_eq!(bytes.len(), 3 << 30);
        assert_eq!((&bytes[..6], &bytes[2 << 30..][..7]), (&b"begin\0"[..], &b"middle\0"[..]));
        assert_eq!(bytes[1 << 30..][..4096], [0; 4096]);
        assert!(resident() < before + (1 << 30), "{} before, {} after", before, resident());
    }

    #[test]
    fn oversized_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("huge");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let refused = read(&path).unwrap_err();
        assert_eq!(refused.to_string(), "it has 1024 GiB; files of more than 4 GiB are not read");
    }

    #[test]
    fn read_all_ignores_the_file_position() {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        let text: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        file.write_all(&text).unwrap();
        assert!(read_all(&file).unwrap() == text);
        assert_eq!(file.read(&mut [0; 8]).unwrap(), 0, "where it was before");
    }
}
