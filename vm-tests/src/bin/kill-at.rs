//! Kills a program before one of its system calls: `kill-at COUNT PROGRAM WORD…` starts it, `kill-at COUNT --pid PID` takes
//! one that runs. Only calls that somebody else could notice count, as between two of them nothing changes; those of its
//! threads and of processes that it starts count as they come. `kill-at --all …` kills those processes with it. Ends as
//! the program did, with 137 if it was killed, and says how many calls there were and which was the last.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, exit};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Calls that change nothing but the process itself.
const UNSEEN: &[libc::c_long] = &[
    // Memory, threads and signals of its own.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mlockall,
    libc::SYS_brk,
    libc::SYS_arch_prctl,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_futex,
    // Descriptors that others do not have.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_pipe2,
    libc::SYS_socketpair,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    // Waiting.
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_restart_syscall,
    // Looking.
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_stat,
    libc::SYS_fstat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getsid,
    libc::SYS_getpgid,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_uname,
    libc::SYS_sysinfo,
];
/// Where an opened file is nobody's business.
const ONLY_READ: [&str; 5] = ["/sys/", "/proc/", "/etc/", "/usr/", "/dev/null"];
const PATH_MAX: usize = 256;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (all, words) = match &words[..] {
        [flag, rest @ ..] if flag == "--all" => (true, rest),
        rest => (false, rest),
    };
    let [count, rest @ ..] = words else {
        bail!("say: kill-at [--all] COUNT PROGRAM WORD…, or COUNT --pid PID")
    };
    let count: u64 = count.parse().context("COUNT is a number")?;
    let watched = match rest {
        [flag, pid] if flag == "--pid" => Watched::running(pid.parse()?)?,
        [] => bail!("no program"),
        program => Watched::started(program)?,
    };
    let (calls, last, code) = watched.kill_before(count, all)?;
    eprintln!("calls {calls}, the last was {last}");
    exit(code)
}

/// A program, its threads and the processes that it starts.
struct Watched {
    leader: Pid,
    tasks: BTreeSet<Pid>,
    /// Whether the program itself runs, not what starts it.
    begun: bool,
}

fn options() -> Options {
    Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
}

impl Watched {
    /// A shell waits for us to be there before it becomes the program.
    fn started(program: &[String]) -> Result<Watched> {
        let shell = ["-c", "kill -STOP $$; exec \"$@\"", "sh"];
        let child = Command::new("sh").args(shell).args(program).spawn()?;
        let leader = Pid::from_raw(i32::try_from(child.id())?);
        waitpid(leader, Some(WaitPidFlag::WUNTRACED))?;
        ptrace::seize(leader, options())?;
        kill(leader, Signal::SIGCONT)?;
        Ok(Watched { leader, tasks: BTreeSet::from([leader]), begun: false })
    }

    fn running(pid: i32) -> Result<Watched> {
        let mut tasks = BTreeSet::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = Pid::from_raw(thread?.file_name().to_string_lossy().parse()?);
            ptrace::seize(thread, options())?;
            ptrace::interrupt(thread)?;
            tasks.insert(thread);
        }
        println!("watching");
        Ok(Watched { leader: Pid::from_raw(pid), tasks, begun: true })
    }

    /// How many calls there were, the last of them, and the program's end.
    fn kill_before(mut self, count: u64, all: bool) -> Result<(u64, String, i32)> {
        let (mut calls, mut last) = (0, String::new());
        loop {
            let (pid, signal) = match waitpid(None, Some(WaitPidFlag::__WALL))? {
                WaitStatus::Exited(pid, code) if pid == self.leader => return Ok((calls, last, code)),
                WaitStatus::Signaled(pid, signal, _) if pid == self.leader => {
                    return Ok((calls, last, 128 + signal as i32));
                }
                WaitStatus::PtraceSyscall(pid) => {
                    self.tasks.insert(pid);
                    if let Some(call) = entered(pid).filter(|call| self.begun && call.is_seen(pid))
                        && calls < count
                    {
                        calls += 1;
                        last = format!(
                            "{} of {}",
                            call.number,
                            if pid == self.leader { "its own" } else { "another" }
                        );
                        if calls == count {
                            kill(self.leader, Signal::SIGKILL)?;
                            if all {
                                // Those that have ended are nobody's any more.
                                for task in &self.tasks {
                                    let _ = kill(*task, Signal::SIGKILL);
                                }
                            }
                        }
                    }
                    (pid, None)
                }
                WaitStatus::PtraceEvent(pid, _, event) => {
                    // The first is what waits for us, and this its end.
                    self.begun |= event == libc::PTRACE_EVENT_EXEC && pid == self.leader;
                    (pid, None)
                }
                WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
                WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) => {
                    self.tasks.remove(&pid);
                    continue;
                }
                _ => continue,
            };
            // It may have been killed meanwhile; then there is nothing to go on with.
            let _ = ptrace::syscall(pid, signal);
        }
    }
}

/// A system call that a task is about to make.
struct Call {
    number: libc::c_long,
    /// The first two.
    arguments: [u64; 2],
}

/// The call that a stopped task is about to make; none if it has just made one, or is dead by now.
fn entered(pid: Pid) -> Option<Call> {
    ptrace::syscall_info(pid).ok().filter(|info| info.op == libc::PTRACE_SYSCALL_INFO_ENTRY)?;
    let registers = ptrace::getregs(pid).ok()?;
    let number = libc::c_long::try_from(registers.orig_rax).ok()?;
    Some(Call { number, arguments: [registers.rdi, registers.rsi] })
}

impl Call {
    /// Whether anybody else could notice it.
    fn is_seen(&self, pid: Pid) -> bool {
        let descriptor = || {
            let link = fs::read_link(format!("/proc/{pid}/fd/{}", self.arguments[0])).unwrap_or_default();
            link.to_string_lossy().into_owned()
        };
        match self.number {
            libc::SYS_openat => {
                let path = text(pid, self.arguments[1]);
                !ONLY_READ.iter().any(|place| path.starts_with(place))
            }
            // A socket that ends, a lock that is given up, a device that is open no more.
            libc::SYS_close => {
                let what = descriptor();
                ["socket:", "/dev/nbd", "/run/"].iter().any(|place| what.starts_with(place))
            }
            // Its own threads wake each other so.
            libc::SYS_write | libc::SYS_writev => !descriptor().starts_with("anon_inode:"),
            number => !UNSEEN.contains(&number),
        }
    }
}

/// A path that another process names.
fn text(pid: Pid, at: u64) -> String {
    let mut bytes = [0; PATH_MAX];
    let read = File::open(format!("/proc/{pid}/mem")).and_then(|memory| memory.read_at(&mut bytes, at));
    let bytes = &bytes[..read.unwrap_or(0)];
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
