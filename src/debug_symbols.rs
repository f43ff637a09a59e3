//! The symbols of stripped programs: from separate debug files, or embedded in the program.

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::elf::{
    Image, SymbolIndex, debug_file_candidates, embedded_symbols, lacks_variables, shared_debug_candidates,
};
use crate::regular;

/// What other files say about a traced program.
#[derive(Debug)]
pub(crate) struct DebugFiles {
    symbols: Option<DebugSymbols>,
    shared: Option<Vec<u8>>,
    /// A debug file that is of another build.
    misfit: Option<PathBuf>,
}

impl DebugFiles {
    /// Reads the debug files of the program in the file that `path` opens and that is called `display` where it runs,
    /// as far as they are needed: all of them if functions are selected by name.
    pub fn of(image: &Image<'_>, wants_names: bool, path: &Path, display: &str) -> Self {
        let wants_symbols = wants_names || lacks_variables(image);
        let (symbols, misfit) = if wants_symbols { search(image, path, display) } else { Default::default() };
        let shared = wants_names.then(|| shared_debug(image, symbols.as_ref(), path, display)).flatten();
        Self { symbols, shared, misfit }
    }

    /// Everything that is known about the program's symbols.
    pub fn index<'a>(&'a self, image: Image<'a>) -> SymbolIndex<'a> {
        let shared = self.shared.as_ref().and_then(|bytes| Image::of_debug_information(bytes).ok());
        SymbolIndex::of(&with_names(image, self.symbols.as_ref()))
            .with_debug_file(self.symbols.as_ref().and_then(DebugSymbols::image))
            .with_shared_debug(shared)
            .with_misfit(self.misfit.clone())
    }
}

/// An ELF file with the symbols of a program.
#[derive(Debug)]
pub(crate) struct DebugSymbols {
    bytes: Vec<u8>,
    embedded: bool,
    /// Where it was found; `None` if it is embedded in the program.
    path: Option<PathBuf>,
}

impl DebugSymbols {
    /// The file as an image, for what it contains besides symbols.
    fn image(&self) -> Option<Image<'_>> {
        Image::parse(&self.bytes).ok()
    }
}

/// Finds the symbols of the program in the file that `path` opens and that is called `display` where it runs. The debug
/// files of a program in a container are in the container, too.
pub(crate) fn debug_symbols(image: &Image<'_>, path: &Path, display: &str) -> Option<DebugSymbols> {
    search(image, path, display).0
}

/// Like [`debug_symbols`]; if there are no symbols, also returns the path of a debug file that is of another build.
fn search(image: &Image<'_>, path: &Path, display: &str) -> (Option<DebugSymbols>, Option<PathBuf>) {
    let root = root_of(path);
    let mut misfit = None;
    for candidate in debug_file_candidates(image, &below(&root, display)) {
        let Ok(bytes) = read_inside(&root, &candidate) else { continue };
        let fits = Image::parse(&bytes).is_ok_and(|debug| image.with_debug_symbols(&debug).is_ok());
        if fits {
            return (Some(DebugSymbols { bytes, embedded: false, path: Some(candidate) }), None);
        }
        misfit.get_or_insert(candidate);
    }
    let embedded = if image.is_stripped() { embedded_symbols(image) } else { None };
    match embedded {
        Some(bytes) => (Some(DebugSymbols { bytes, embedded: true, path: None }), None),
        None => (None, misfit),
    }
}

/// Reads the file that the program, or its debug file, shares with others as a supplement to its debug information. Its
/// location is in the file that refers to it.
fn shared_debug(
    image: &Image<'_>,
    symbols: Option<&DebugSymbols>,
    path: &Path,
    display: &str,
) -> Option<Vec<u8>> {
    let root = root_of(path);
    let of_debug_file = symbols.and_then(|symbols| {
        let debug_file = symbols.image()?;
        Some(shared_debug_candidates(&debug_file, symbols.path.as_deref()?))
    });
    let own = shared_debug_candidates(image, &below(&root, display));
    let all = own.into_iter().chain(of_debug_file.into_iter().flatten());
    all.filter_map(|candidate| read_inside(&root, &candidate).ok()).next()
}

/// The program with the symbols that [`debug_symbols`] found.
pub(crate) fn with_names<'a>(image: Image<'a>, symbols: Option<&'a DebugSymbols>) -> Image<'a> {
    let parsed = symbols.and_then(|symbols| Some((Image::parse(&symbols.bytes).ok()?, symbols.embedded)));
    match parsed {
        Some((symbols, true)) => image.with_embedded_symbols(&symbols),
        Some((symbols, false)) => image.with_debug_symbols(&symbols).unwrap_or(image),
        None => image,
    }
}

/// The root directory that paths are relative to where the file runs: the process's root, if the path leads through a
/// process.
fn root_of(path: &Path) -> PathBuf {
    let mut components = path.components();
    let through_proc = components.next() == Some(Component::RootDir)
        && components.next() == Some(Component::Normal("proc".as_ref()));
    let process = components.next().and_then(|process| process.as_os_str().to_str());
    match process.filter(|process| through_proc && process.bytes().all(|byte| byte.is_ascii_digit())) {
        Some(process) => PathBuf::from(format!("/proc/{process}/root")),
        None => PathBuf::from("/"),
    }
}

/// Returns the path below `root` of the program that is called `display`. The kernel tells the whole path of a program
/// in a chroot.
fn below(root: &Path, display: &str) -> PathBuf {
    let directory = std::fs::read_link(root).unwrap_or_else(|_| PathBuf::from("/"));
    match Path::new(display).strip_prefix(directory) {
        Ok(rest) => Path::new("/").join(rest),
        Err(_) => PathBuf::from(display),
    }
}

/// Reads a file by its path below `root`, which no link can escape.
fn read_inside(root: &Path, path: &Path) -> io::Result<Vec<u8>> {
    regular::read_all(&regular::open_inside(root, path)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn root_follows_the_process() {
        assert_eq!(root_of(Path::new("/usr/bin/x")), Path::new("/"));
        assert_eq!(root_of(Path::new("/proc/12/exe")), Path::new("/proc/12/root"));
        assert_eq!(root_of(Path::new("/proc/12/root/usr/bin/x")), Path::new("/proc/12/root"));
        assert_eq!(root_of(Path::new("/proc/self/exe")), Path::new("/"));
        assert_eq!(root_of(Path::new("relative/proc/12")), Path::new("/"));
    }

    #[test]
    fn a_program_in_a_chroot_is_below_its_root() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        symlink("/srv/jail", &root).unwrap();
        assert_eq!(below(&root, "/srv/jail/opt/x"), Path::new("/opt/x"));
        assert_eq!(below(&root, "/opt/x"), Path::new("/opt/x"));
        assert_eq!(below(Path::new("/"), "/opt/x"), Path::new("/opt/x"));
    }

    #[test]
    fn symlinks_cannot_escape_the_root() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), "outside").unwrap();
        fs::write(root.path().join("inside"), "inside").unwrap();
        symlink("/inside", root.path().join("absolute")).unwrap();
        symlink(outside.path(), root.path().join("out")).unwrap();
        symlink("../../../../../../inside", root.path().join("up")).unwrap();
        let read = |path: &str| read_inside(root.path(), Path::new(path));
        for inside in ["/inside", "/absolute", "/up", "/../inside"] {
            assert_eq!(read(inside).unwrap(), b"inside", "{inside}");
        }
        assert!(read("/out").is_err() && read("/").is_err());
    }
}
