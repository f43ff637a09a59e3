//! A seccomp(2) filter: system calls that the exporter never makes are refused, whatever its input contains.
//!
//! It is a deny list rather than an allow list, on purpose. The C library and the kernel add new calls with every
//! version, and a library whose call is refused fails at night and far from here; a well-maintained allow list exists
//! already, and the shipped unit uses it (`SystemCallFilter=@system-service`). This filter applies everywhere, also to
//! root in a container: nothing is left that would turn a vulnerability into more than the process itself has. Refused
//! calls fail with `EPERM`, as without the permission.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};

use super::Needs;

/// Never made, whatever the arguments.
#[rustfmt::skip]
const NEVER: &[c_long] = &[
    // Executing programs.
    libc::SYS_execve, libc::SYS_execveat, libc::SYS_fork, libc::SYS_vfork, libc::SYS_uselib,
    // Access to other processes, except by process_vm_readv, which reads names of functions.
    libc::SYS_ptrace, libc::SYS_process_vm_writev, libc::SYS_kcmp, libc::SYS_pidfd_send_signal, libc::SYS_kill, libc::SYS_tkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo, libc::SYS_process_madvise,
    libc::SYS_process_mrelease, libc::SYS_move_pages, libc::SYS_migrate_pages,
    // Namespaces and mounts.
    libc::SYS_unshare, libc::SYS_chroot, libc::SYS_pivot_root, libc::SYS_mount, libc::SYS_umount2, libc::SYS_fsopen,
    libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick, libc::SYS_move_mount, libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    // Access to files that bypasses the permissions of their paths, and ownership of files.
    libc::SYS_open_by_handle_at, libc::SYS_name_to_handle_at, libc::SYS_fanotify_init, libc::SYS_mknod,
    libc::SYS_mknodat, libc::SYS_chown, libc::SYS_lchown, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_setxattr,
    libc::SYS_lsetxattr, libc::SYS_fsetxattr, libc::SYS_quotactl, libc::SYS_quotactl_fd,
    // The kernel and the machine.
    libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module, libc::SYS_kexec_load,
    libc::SYS_kexec_file_load, libc::SYS_reboot, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_acct, libc::SYS_syslog,
    libc::SYS_sethostname, libc::SYS_setdomainname, libc::SYS_settimeofday, libc::SYS_clock_settime,
    libc::SYS_clock_adjtime, libc::SYS_adjtimex, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_vhangup,
    // User and group ids.
    libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setreuid, libc::SYS_setregid, libc::SYS_setresuid, libc::SYS_setresgid,
    libc::SYS_setfsuid, libc::SYS_setfsgid, libc::SYS_setgroups, libc::SYS_personality, libc::SYS_setsid,
    // Keys.
    libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl,
    // Ways around a filter or into kernel memory that the exporter does not use.
    libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register, libc::SYS_userfaultfd,
    libc::SYS_modify_ldt, libc::SYS_memfd_secret, libc::SYS_vmsplice,
    // Shared memory and message queues by number.
    libc::SYS_shmget, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_msgget, libc::SYS_msgsnd, libc::SYS_msgrcv,
    libc::SYS_msgctl, libc::SYS_semget, libc::SYS_semop, libc::SYS_semctl, libc::SYS_semtimedop, libc::SYS_mq_open,
];

/// Calls of the x32 ABI have this bit, and the same architecture as all others.
const X32: u32 = 0x4000_0000;

/// Refuses, in all present and future threads of the process, the system calls that the exporter never makes. Also sets
/// `no_new_privs`. This is irreversible.
///
/// # Errors
/// If the kernel refuses: it may have been built without seccomp.
pub(super) fn confine(needs: Needs) -> Result<(), seccompiler::Error> {
    for filter in filters(needs)? {
        seccompiler::apply_filter_all_threads(&filter)?;
    }
    Ok(())
}

/// The first filter refuses calls as if the permission were missing; the others as if the kernel did not know them.
fn filters(needs: Needs) -> Result<[BpfProgram; 3], seccompiler::Error> {
    let refuse = |errno: i32, rules: Rules| -> Result<BpfProgram, seccompiler::Error> {
        let errno = SeccompAction::Errno(errno.unsigned_abs());
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, TargetArch::x86_64)?;
        Ok(filter.try_into()?)
    };
    // The flags of clone3(2) are in memory, which a filter cannot read. The C library falls back to clone(2) for its
    // threads.
    let unknown = Rules::from([(libc::SYS_clone3, Vec::new())]);
    Ok([refuse(libc::EPERM, refused(needs)?)?, refuse(libc::ENOSYS, unknown)?, without_x32()])
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn refused(needs: Needs) -> Result<Rules, seccompiler::Error> {
    let mut rules: Rules = NEVER.iter().map(|call| (*call, Vec::new())).collect();
    let is = |argument, op, value: i32| {
        SeccompCondition::new(argument, Dword, op, u64::from(value.cast_unsigned()))
    };
    let has = |argument, bits: i32| is(argument, MaskedEq(u64::from(bits.cast_unsigned())), bits);
    let has_not = |argument, bits: i32| is(argument, MaskedEq(u64::from(bits.cast_unsigned())), 0);
    // Creating processes; only threads are created.
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![has_not(0, libc::CLONE_THREAD)?])?]);
    // Signals to other processes; abort(3) sends one to itself.
    let own = std::process::id().cast_signed();
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![is(0, Ne, own)?])?]);
    // Turning data into code. A file's code may be mapped, also privately.
    let write_and_execute = has(2, libc::PROT_WRITE | libc::PROT_EXEC)?;
    rules.insert(libc::SYS_mmap, vec![SeccompRule::new(vec![write_and_execute])?]);
    for call in [libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        rules.insert(call, vec![SeccompRule::new(vec![has(2, libc::PROT_EXEC)?])?]);
    }
    // Injecting input into terminals.
    let typed = SeccompRule::new(vec![is(1, Eq, libc::TIOCSTI as i32)?])?;
    let pasted = SeccompRule::new(vec![is(1, Eq, libc::TIOCLINUX as i32)?])?;
    rules.insert(libc::SYS_ioctl, vec![typed, pasted]);
    // Sockets of other families: raw frames, virtual machines, the kernel's cryptography.
    let mut families = vec![libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];
    families.extend(needs.network.then_some(libc::AF_NETLINK));
    let others: Result<Vec<_>, _> = families.iter().map(|family| is(0, Ne, *family)).collect();
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(others?)?]);
    if !needs.namespaces {
        rules.insert(libc::SYS_setns, Vec::new());
    }
    if !needs.sockets {
        rules.insert(libc::SYS_pidfd_getfd, Vec::new());
    }
    Ok(rules)
}

/// Refuses the x32 ABI, which has other numbers for the same calls.
fn without_x32() -> BpfProgram {
    let step = |code: u32, jt, jf, k| seccompiler::sock_filter { code: code as u16, jt, jf, k };
    vec![
        // The number is the first word of the filter's input (`struct seccomp_data`).
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use std::io;

    use super::*;

    /// The result of each call with these arguments, in a thread that has the filters alone.
    fn try_in_a_thread(
        needs: Needs,
        calls: &[(&'static str, c_long, [c_long; 4])],
    ) -> Vec<(&'static str, i32)> {
        let calls = calls.to_vec();
        let results = std::thread::spawn(move || {
            for filter in filters(needs).unwrap() {
                seccompiler::apply_filter(&filter).unwrap();
            }
            let result = |(name, call, [a, b, c, d]): (&'static str, c_long, [c_long; 4])| {
                // SAFETY: each is called with arguments that are invalid or harmless.
                let result = unsafe { libc::syscall(call, a, b, c, d, -1, 0) };
                (name, if result < 0 { io::Error::last_os_error().raw_os_error().unwrap() } else { 0 })
            };
            calls.into_iter().map(result).collect()
        });
        results.join().unwrap()
    }

    #[test]
    fn unused_syscalls_are_denied_regardless_of_arguments() {
        let every: Vec<_> = NEVER.iter().map(|call| ("", *call, [-1; 4])).collect();
        for ((_, number), (_, call, _)) in try_in_a_thread(Needs::default(), &every).iter().zip(&every) {
            assert_eq!(*number, libc::EPERM, "call {call}");
        }
    }

    #[test]
    fn some_syscalls_are_denied_by_argument() {
        let own = c_long::from(std::process::id());
        let (anonymous, all) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_WRITE | libc::PROT_EXEC);
        let map = |protection: i32| [0, 4096, protection.into(), anonymous.into()];
        let socket = |family: i32| [family.into(), libc::SOCK_DGRAM.into(), 0, 0];
        let results = try_in_a_thread(
            Needs::default(),
            &[
                ("a process", libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0]),
                ("clone3", libc::SYS_clone3, [0; 4]),
                ("x32 getpid", libc::SYS_getpid | c_long::from(X32), [0; 4]),
                ("a signal to init", libc::SYS_tgkill, [1, 1, 0, 0]),
                ("a signal to itself", libc::SYS_tgkill, [own, own, 0, 0]),
                ("data to execute", libc::SYS_mmap, map(all)),
                ("data", libc::SYS_mmap, map(libc::PROT_WRITE)),
                ("making data code", libc::SYS_mprotect, [0, 4096, libc::PROT_EXEC.into(), 0]),
                ("typing", libc::SYS_ioctl, [0, libc::TIOCSTI as c_long, 0, 0]),
                ("packets", libc::SYS_socket, socket(libc::AF_PACKET)),
                ("netlink", libc::SYS_socket, socket(libc::AF_NETLINK)),
                ("UDP", libc::SYS_socket, socket(libc::AF_INET)),
                ("a namespace", libc::SYS_setns, [-1, libc::CLONE_NEWNET.into(), 0, 0]),
                ("a descriptor", libc::SYS_pidfd_getfd, [-1, 0, 0, 0]),
            ],
        );
        let expected = [
            ("a process", libc::EPERM),
            ("clone3", libc::ENOSYS),
            ("x32 getpid", libc::ENOSYS),
            ("a signal to init", libc::EPERM),
            ("a signal to itself", 0),
            ("data to execute", libc::EPERM),
            ("data", 0),
            ("making data code", libc::EPERM),
            ("typing", libc::EPERM),
            ("packets", libc::EPERM),
            ("netlink", libc::EPERM),
            ("UDP", 0),
            ("a namespace", libc::EPERM),
            ("a descriptor", libc::EPERM),
        ];
        assert_eq!(results, expected);
    }

    #[test]
    fn network_features_allow_netlink_and_setns() {
        let needs = Needs { network: true, namespaces: true, sockets: true, ..Needs::default() };
        let netlink = [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 0, 0];
        let namespace = [-1, libc::CLONE_NEWNET.into(), 0, 0];
        let results = try_in_a_thread(
            needs,
            &[
                ("netlink", libc::SYS_socket, netlink),
                ("a namespace", libc::SYS_setns, namespace),
                ("a descriptor", libc::SYS_pidfd_getfd, [-1, 0, 0, 0]),
            ],
        );
        let expected = [("netlink", 0), ("a namespace", libc::EBADF), ("a descriptor", libc::EBADF)];
        assert_eq!(results, expected);
    }
}
