//! System calls that fail in this process from now on, as a sandbox makes them. Apart, as it takes
//! a 64-bit little-endian Linux.

pub(crate) const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
pub(crate) const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// One step: where its test fails, as many of the next are passed over as `jf` says.
pub(crate) fn step(code: u16, k: u32, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf, k }
}

/// Fails what all these steps let through with `errno`, and allows what they pass over.
pub(crate) fn refuse(steps: &[libc::sock_filter], errno: i32) {
    let mut filter = steps.to_vec();
    filter.push(step(RETURN, libc::SECCOMP_RET_ERRNO | errno as u32, 0));
    filter.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0));
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program is a valid filter and outlives the calls, which copy it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let filter = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, filter, &program), 0);
    }
}
