//! Which system calls are left to a server that serves: seccomp.
//!
//! Anything else fails as if the kernel did not have it, so that a newer C library, which tries newer
//! calls first, falls back to those that are listed.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Calls with whatever arguments.
const FREE: &[libc::c_long] = &[
    // Data, in and out.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
    libc::SYS_flock,
    // Rings that there are, which read and write only.
    libc::SYS_io_uring_enter,
    // Files: of which, landlock says.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_fgetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_fremovexattr,
    // Sockets that there are.
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pipe2,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    // Memory and threads.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals, to itself.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // About itself.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_umask,
];

/// Calls that newer architectures no longer have, and C libraries still make on this one.
#[cfg(target_arch = "x86_64")]
const OLD: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_mkdir,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[];

/// What is asked of descriptors by ioctl(2). Everything else a device can be told stays unsaid: a disk that is served
/// would take commands of its own (SG_IO), and a terminal what seems to be typed (TIOCSTI).
const IOCTLS: &[u64] = &[
    libc::FIONBIO,
    // Whether it is a terminal.
    libc::TCGETS,
    // BLKDISCARD, BLKZEROOUT and BLKFLSBUF.
    0x1277,
    0x127f,
    0x1261,
];

pub(super) fn confine() -> anyhow::Result<&'static str> {
    let Ok(machine) = std::env::consts::ARCH.try_into() else {
        bail!("there is no filter for this processor");
    };
    let (allow, deny) = (SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()));
    let filter = SeccompFilter::new(rules()?, deny, allow, machine)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter_all_threads(&program).context("seccomp")?;
    Ok("seccomp")
}

fn rules() -> anyhow::Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        FREE.iter().chain(OLD).map(|call| (*call, Vec::new())).collect();
    for (call, conditions) in conditional()? {
        rules.entry(call).or_default().push(SeccompRule::new(conditions)?);
    }
    Ok(rules)
}

/// Calls with some arguments; one that is there several times is allowed in each of these ways.
fn conditional() -> anyhow::Result<Vec<(i64, Vec<SeccompCondition>)>> {
    let number = |value: libc::c_int| u64::try_from(value).context("a constant of the kernel is negative");
    let argument = |place, op, value| SeccompCondition::new(place, SeccompCmpArgLen::Dword, op, value);
    let is = |place, value| anyhow::Ok(argument(place, SeccompCmpOp::Eq, number(value)?)?);
    let has = |place, bit, value| {
        anyhow::Ok(argument(place, SeccompCmpOp::MaskedEq(number(bit)?), number(value)?)?)
    };
    let not_to_run = || has(2, libc::PROT_EXEC, 0);
    let own = libc::c_int::try_from(std::process::id()).context("a process id")?;
    let mut calls = vec![
        // No memory that was written can be run.
        (libc::SYS_mmap, vec![not_to_run()?]),
        (libc::SYS_mprotect, vec![not_to_run()?]),
        // A new thread, not a new process. Which of the two clone3 makes cannot be seen here, so it is left
        // out, and the C library uses clone.
        (libc::SYS_clone, vec![has(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?]),
        (libc::SYS_tgkill, vec![is(0, own)?]),
        (libc::SYS_prlimit64, vec![is(0, 0)?]),
        (libc::SYS_prctl, vec![is(0, libc::PR_SET_NAME)?]),
        (libc::SYS_socketpair, vec![is(0, libc::AF_UNIX)?]),
    ];
    for request in IOCTLS {
        calls.push((libc::SYS_ioctl, vec![argument(1, SeccompCmpOp::Eq, *request)?]));
    }
    // Other services listen on Unix sockets, too: they are reached only where a service manager waits to be told.
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        calls.push((libc::SYS_socket, vec![is(0, libc::AF_UNIX)?]));
        calls.push((libc::SYS_connect, Vec::new()));
    }
    Ok(calls)
}
