//! What differs between processors: how a system call that is about to be made is skipped, changed
//! or given another result. Reading one needs none of this: the kernel tells it alike everywhere.

use nix::Result;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;

/// At a call's entry: the kernel does nothing, and returns at once.
#[cfg(target_arch = "x86_64")]
pub(super) fn skip(pid: Pid) -> Result<()> {
    let mut registers = ptrace::getregs(pid)?;
    registers.orig_rax = u64::MAX;
    ptrace::setregs(pid, registers)
}

#[cfg(target_arch = "aarch64")]
pub(super) fn skip(pid: Pid) -> Result<()> {
    const NT_ARM_SYSTEM_CALL: usize = 0x404;
    let mut number = -1_i32;
    let mut data = libc::iovec {
        iov_base: (&raw mut number).cast(),
        iov_len: size_of::<i32>(),
    };
    // SAFETY: the kernel reads four bytes from `number`, which outlives the call.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_SETREGSET,
            pid.as_raw(),
            NT_ARM_SYSTEM_CALL,
            &raw mut data,
        )
    };
    Errno::result(result).map(drop)
}

/// At a call's exit: it seems to have failed.
pub(super) fn set_failure(pid: Pid, errno: Errno) -> Result<()> {
    let mut registers = ptrace::getregs(pid)?;
    let value = -i64::from(errno as i32);
    #[cfg(target_arch = "x86_64")]
    {
        registers.rax = value.cast_unsigned();
    }
    #[cfg(target_arch = "aarch64")]
    {
        registers.regs[0] = value.cast_unsigned();
    }
    ptrace::setregs(pid, registers)
}

/// At a call's entry: another third argument, which is how much is written.
pub(super) fn set_third_argument(pid: Pid, value: u64) -> Result<()> {
    let mut registers = ptrace::getregs(pid)?;
    #[cfg(target_arch = "x86_64")]
    {
        registers.rdx = value;
    }
    #[cfg(target_arch = "aarch64")]
    {
        registers.regs[2] = value;
    }
    ptrace::setregs(pid, registers)
}
