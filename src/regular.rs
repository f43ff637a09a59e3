//! Opening files that others put where they are.
//!
//! Opening a pipe waits for its other end, or lets a program at that end go on; opening a device can do anything. A file
//! that is looked at must be neither, and may be replaced by one between two system calls.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens a regular file for reading; never waits.
///
/// # Errors
/// What the kernel says, or that it is no regular file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let is_regular = |meta: &fs::Metadata| {
        if meta.is_file() { Ok(()) } else { Err(io::Error::other("not a regular file")) }
    };
    is_regular(&fs::metadata(path)?)?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    is_regular(&file.metadata()?)?;
    Ok(file)
}

/// All of it.
///
/// # Errors
/// Those of [`open`], and of reading.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_all(&open(path)?)
}

/// All of a file that is open, wherever it has been read to.
///
/// # Errors
/// What the kernel says.
pub(crate) fn read_all(mut file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(file.metadata()?.len() as usize);
    io::Seek::rewind(&mut file)?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_nobody_writes_to_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, file) = (folder.path().join("pipe"), folder.path().join("file"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        fs::write(&file, "text").unwrap();
        assert_eq!(open(&pipe).unwrap_err().to_string(), "not a regular file");
        assert_eq!(open(Path::new("/dev/zero")).unwrap_err().to_string(), "not a regular file");
        assert_eq!(open(folder.path()).unwrap_err().to_string(), "not a regular file");
        assert_eq!(read(&file).unwrap(), b"text");
    }
}
