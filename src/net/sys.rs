//! System calls without a safe wrapper: links with attach flags and their targets, program chains, network namespaces,
//! random keys, and the monotonic clock.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libbpf_rs::{AsRawLibbpf, OpenProgramMut};

use crate::clock::kernel_time;

/// Attaches a program by a link to a network interface (its index) or a cgroup (a descriptor); closing the link's
/// descriptor detaches it.
///
/// # Errors
/// From the kernel, unchanged; a link reports no text.
pub(crate) fn create_link(
    program: BorrowedFd<'_>,
    target: i32,
    kind: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        flags,
        ..Default::default()
    };
    // SAFETY: the options outlive the call and say their own size.
    let fd = unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), target, kind, &options) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The interface that an XDP or TCX link is attached to, or the id of a link's cgroup (its lower half), and the program's
/// id. The target is zero once the link was detached by force or the interface was deleted.
///
/// # Errors
/// If the kernel does not report it.
pub(crate) fn link_target(link: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let mut info = libbpf_sys::bpf_link_info::default();
    let mut length = size_of_val(&info) as u32;
    // SAFETY: the kernel writes at most as many bytes as it is told that there are.
    let result = unsafe { libbpf_sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &mut info, &mut length) };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: plain numbers, all of which may be read whatever the kernel has written. TCX and
    // cgroups keep theirs in the same place.
    Ok((unsafe { info.__bindgen_anon_1.xdp.ifindex }, info.prog_id))
}

/// Detaches a link, even if other descriptors of it are open.
///
/// # Errors
/// If it is detached already, or the interface no longer exists.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a system call on a descriptor, without pointers.
    let result = unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// Replaces a link's program atomically.
///
/// # Errors
/// If the program does not fit.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: two descriptors, and no options.
    let result =
        unsafe { libbpf_sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null()) };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// Pins a program or link on a BPF file system.
///
/// # Errors
/// From the kernel.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the text outlives the call and ends with a zero.
    let result = unsafe { libbpf_sys::bpf_obj_pin(object.as_raw_fd(), path.as_ptr()) };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// Opens a pinned object.
///
/// # Errors
/// From the kernel.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the text outlives the call and ends with a zero.
    let fd = unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The kernel's cookie of the calling thread's network namespace, which is unique until the next boot.
///
/// # Errors
/// If the kernel does not report it: before Linux 5.14.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    // Any socket will do.
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let (mut cookie, mut length) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes at most as many bytes as it is told that there are.
    let result = unsafe {
        let place = std::ptr::from_mut(&mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, place, &mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Ids of the programs at an interface's hook, in the order in which they run.
///
/// # Errors
/// If the kernel does not know the hook, or there are more than sixty-four.
pub(crate) fn chain(ifindex: i32, kind: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let mut options = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as _,
        prog_ids: ids.as_mut_ptr(),
        ..Default::default()
    };
    options.__bindgen_anon_1.count = ids.len() as u32;
    // SAFETY: the array outlives the call, and its length is given.
    let result = unsafe { libbpf_sys::bpf_prog_query_opts(ifindex, kind, &mut options) };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: both fields of the union are the same number.
    let count = unsafe { options.__bindgen_anon_1.count } as usize;
    Ok(ids[..count.min(ids.len())].to_vec())
}

/// Sets the operand of all "and" instructions of a program whose operand is `placeholder`: a constant that is unknown
/// at compile time and costs nothing at run time.
///
/// # Errors
/// If there is none, or the program is loaded already.
pub fn set_operand(program: &mut OpenProgramMut<'_>, placeholder: i32, operand: i32) -> io::Result<()> {
    let mut instructions = program.insns().to_vec();
    let and = (libbpf_sys::BPF_ALU64 | libbpf_sys::BPF_AND | libbpf_sys::BPF_K) as u8;
    let mut found = 0;
    for one in instructions.iter_mut().filter(|one| one.code == and && one.imm == placeholder) {
        one.imm = operand;
        found += 1;
    }
    if found == 0 {
        return Err(io::Error::other(format!("no operand {placeholder:#x}")));
    }
    // SAFETY: libbpf copies as many instructions as it is told; their number is the same as before.
    let result = unsafe {
        libbpf_sys::bpf_program__set_insns(
            program.as_libbpf_object().as_ptr(),
            instructions.as_mut_ptr(),
            instructions.len() as _,
        )
    };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// Moves this thread into a network namespace.
///
/// # Errors
/// If it is not one, or without CAP_SYS_ADMIN.
pub(crate) fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a system call without pointers; it concerns this thread alone.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The speed of an interface's link in Mbit/s, from the driver; `None` if it has none or is down. In the calling
/// thread's network namespace.
///
/// Format: `struct ethtool_link_settings`, include/uapi/linux/ethtool.h. The first call returns the length of the masks
/// at its end.
pub(crate) fn link_speed(name: &str) -> Option<u32> {
    const ETHTOOL_GLINKSETTINGS: u32 = 0x4c;
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    const WORDS: usize = 12 + 3 * 127;
    const SPEED_UNKNOWN: u32 = u32::MAX;
    // Any socket will do.
    let socket = std::os::unix::net::UnixDatagram::unbound().ok()?;
    let mut settings = [0u32; WORDS];
    settings[0] = ETHTOOL_GLINKSETTINGS;
    for _ in 0..2 {
        // SAFETY: plain bytes, for which all zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let fits = request.ifr_name.len() > name.len();
        request.ifr_name.iter_mut().zip(name.bytes()).filter(|_| fits).for_each(|(to, byte)| *to = byte as _);
        request.ifr_ifru.ifru_data = settings.as_mut_ptr().cast();
        // SAFETY: both structures outlive the call; the kernel writes a fixed part of 48 bytes and three masks of at most 127 words.
        if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &mut request) } < 0 {
            return None;
        }
        // `link_mode_masks_nwords`, a signed byte: a negative value is the required number.
        let words = (settings[3] >> 24) as i8;
        if words >= 0 {
            return Some(settings[1]).filter(|speed| !matches!(*speed, 0 | SPEED_UNKNOWN));
        }
        settings = [0; WORDS];
        settings[0] = ETHTOOL_GLINKSETTINGS;
        settings[3] = u32::from(words.unsigned_abs()) << 24;
    }
    None
}

/// Unpredictable words.
///
/// # Errors
/// If the kernel provides none.
pub(crate) fn random<const WORDS: usize>() -> io::Result<[u64; WORDS]> {
    let mut words = [0u64; WORDS];
    // SAFETY: the kernel writes as many bytes as the array has, all of them for this few.
    let got = unsafe { libc::getrandom(words.as_mut_ptr().cast(), size_of_val(&words), 0) };
    if got == size_of_val(&words) as isize { Ok(words) } else { Err(io::Error::last_os_error()) }
}

/// Nanoseconds of `CLOCK_MONOTONIC_COARSE`, the clock of the tables.
pub(crate) fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the structure that it is given. It cannot fail for a clock that exists since Linux 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    kernel_time(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// The kernel's id of a program.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> Option<u32> {
    libbpf_rs::ProgramImpl::<()>::id_from_fd(program).ok()
}
