//! `llmlb serve --check`: what a start looks at by itself, in the same words. Nothing is taken, and
//! nobody is asked: neither the lock nor the port, neither etcd nor a backend.

#[cfg(unix)]
use llmlb_lock_core::LockDir;

use crate::args::ServeArgs;
#[cfg(target_os = "linux")]
use crate::cluster::Membership;
#[cfg(unix)]
use crate::detach;
use crate::exit::{self, Failure};
use crate::{built_in, output, serve, supervise};

pub(crate) fn run(
    #[cfg_attr(not(target_os = "linux"), expect(unused_mut))] mut args: ServeArgs,
) -> Result<u8, Failure> {
    let typed = args.command.first().cloned();
    let wanted = args.port;
    let listening = |args: &ServeArgs| serve::try_host(&args.host, wanted);
    #[cfg(target_os = "linux")]
    {
        // Known to others by a port that the start finds, too.
        let port = match wanted {
            0 => listening(&args)?.port(),
            port => port,
        };
        Membership::join(&mut args, port)?;
    }
    #[cfg(unix)]
    if args.detach {
        detach::check_log(args.log_file.as_deref(), &LockDir::default(), wanted)?;
    }
    let subject = match typed {
        Some(program) => {
            supervise::check_command(&program)?;
            format!("{} under the guard", program.to_string_lossy())
        }
        None => {
            let count = built_in::check(&args, listening(&args)?)?;
            output::count(count, "backend")
        }
    };
    output::line(&format!("Nothing is wrong: port {wanted}, {subject}"))?;
    Ok(exit::OK)
}
