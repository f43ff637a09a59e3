//! Foreign programs on an interface, and packets that bypass ours.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::namespace::{raw_socket, send_by};

/// A program of two instructions that returns a verdict, and its link; both are removed when dropped.
pub struct Foreign {
    _program: OwnedFd,
    _link: OwnedFd,
}

/// Attaches a TC program that runs before others. Must be called in the interface's network namespace.
pub fn before_others(index: i32, kind: u32, verdict: i32) -> Foreign {
    foreign(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, index, kind, libbpf_sys::BPF_F_BEFORE, verdict)
}

/// Attaches an XDP program in native mode.
pub fn native_xdp(index: i32, verdict: i32) -> Foreign {
    const DRIVER_MODE: u32 = 1 << 2;
    foreign(libbpf_sys::BPF_PROG_TYPE_XDP, index, libbpf_sys::BPF_XDP, DRIVER_MODE, verdict)
}

fn foreign(program_kind: u32, index: i32, kind: u32, flags: u32, verdict: i32) -> Foreign {
    let instruction =
        |code: u32, imm: i32| libbpf_sys::bpf_insn { code: code as u8, imm, ..Default::default() };
    let instructions = [
        instruction(libbpf_sys::BPF_ALU64 | libbpf_sys::BPF_MOV | libbpf_sys::BPF_K, verdict),
        instruction(libbpf_sys::BPF_JMP | libbpf_sys::BPF_EXIT, 0),
    ];
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        flags,
        ..Default::default()
    };
    // SAFETY: names end with a NUL, the instruction count matches, the options are null or outlive the call; the kernel
    // created the descriptors for this caller alone.
    unsafe {
        let program = libbpf_sys::bpf_prog_load(
            program_kind,
            c"somebody".as_ptr(),
            c"GPL".as_ptr(),
            instructions.as_ptr(),
            instructions.len() as _,
            std::ptr::null_mut(),
        );
        assert!(program >= 0, "another's program: {}", std::io::Error::from_raw_os_error(-program));
        let program = OwnedFd::from_raw_fd(program);
        let link = libbpf_sys::bpf_link_create(program.as_raw_fd(), index, kind, &options);
        assert!(link >= 0, "another's link: {}", std::io::Error::from_raw_os_error(-link));
        Foreign { _program: program, _link: OwnedFd::from_raw_fd(link) }
    }
}

/// Sends frames that bypass the programs attached to egress.
pub fn send_past_tc(interface: &str, frame: &[u8], times: usize) {
    const PACKET_QDISC_BYPASS: i32 = 20;
    let socket = raw_socket();
    let (on, size) = (1i32, size_of::<i32>() as u32);
    // SAFETY: the socket and the value, whose length is given, both outlive the call.
    let set = unsafe {
        let on = (&raw const on).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, PACKET_QDISC_BYPASS, on, size)
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    send_by(&socket, interface, frame, times);
}
