//! The role comes from the program's name or the first word; only this file ends the process.

use rbee::cli::{self, Action, Request, Role};
use rbee::config::Settings;
use rbee::daemon;
use rbee::exit::Exit;
use rbee::serve::{self, Roles, ServeError};
use rbee::shutdown::{self, Shutdown};
use rbee::wire::failure::chain;
use rbee::{keeper, pkgbuild, process, worker};
use std::error::Error;

/// Threads of a daemon's runtime, at most half the cores: it relays, and the other half is for those it relays for. Each more
/// is woken for every request, to find that there is nothing for it to do.
const DAEMON_THREADS_MAX: usize = 4;
/// Threads of a worker's runtime: the engine has its own.
const WORKER_THREADS: usize = 2;

fn main() -> Exit {
    match cli::parse(std::env::args_os()) {
        Ok(Request::Help(text)) => print(&text),
        Ok(Request::Version { json }) => version(json),
        Ok(Request::Command(parsed)) if parsed.command.action == Action::Shim => shim(&parsed.positionals),
        Ok(Request::Command(parsed)) if parsed.command.action == Action::Unpack => {
            unpack(&parsed.positionals)
        }
        Ok(Request::Command(parsed)) => match Settings::of_process(parsed) {
            Ok(settings) => dispatch(&settings),
            Err(error) => fail(&error, Exit::Usage),
        },
        Err(error) => fail(&error, Exit::Usage),
    }
}

fn dispatch(settings: &Settings) -> Exit {
    match settings.command().role {
        Role::Serve => serve_roles(settings, Roles::Both),
        Role::Queen => serve_roles(settings, Roles::Queen),
        Role::Hive => serve_roles(settings, Roles::Hive),
        Role::Worker => run_worker(settings),
        Role::Catalog => catalog(settings),
        Role::Keeper => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let exit = runtime.block_on(keeper::run(settings));
                // A prompt still being read from a terminal must not hold up the end.
                runtime.shutdown_background();
                exit
            }
            Err(error) => fail(&error, Exit::Failed),
        },
        Role::Shim | Role::Unpack => Exit::Usage,
    }
}

/// What this file is, and what its engine makes of this processor.
fn version(is_json: bool) -> Exit {
    let kernels = worker::cpu::kernels();
    print(&keeper::commands::version::text(is_json, &kernels.used, &kernels.unused))
}

/// The shim has no settings, no runtime and no second thread.
fn shim(positionals: &[String]) -> Exit {
    match positionals {
        [record] if process::shim_main(record.as_ref()) == 0 => Exit::Done,
        _ => Exit::Failed,
    }
}

/// As bare as the shim: it reads what strangers have packed.
fn unpack(positionals: &[String]) -> Exit {
    match positionals {
        [task] if pkgbuild::unpack::unpack_main(task.as_ref()) => Exit::Done,
        _ => Exit::Failed,
    }
}

fn serve_roles(settings: &Settings, roles: Roles) -> Exit {
    daemon::log::begin(settings, true);
    serving(serve::run(settings, roles))
}

fn catalog(settings: &Settings) -> Exit {
    daemon::log::begin(settings, false);
    serving(serve::catalog(settings))
}

fn serving(served: impl Future<Output = Result<(), ServeError>>) -> Exit {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = (cores / 2).clamp(1, DAEMON_THREADS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    match runtime.map(|runtime| runtime.block_on(served)) {
        Ok(Ok(())) => Exit::Done,
        Ok(Err(error)) => fail(&error, Exit::Failed),
        Err(error) => fail(&error, Exit::Failed),
    }
}

fn run_worker(settings: &Settings) -> Exit {
    // Its shim keeps what it says.
    daemon::log::begin(settings, false);
    let options = match worker::Options::from_settings(settings) {
        Ok(options) => options,
        Err(error) => return fail(&error, Exit::Usage),
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(WORKER_THREADS).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, Exit::Failed),
    };
    let served = runtime.block_on(async {
        let shutdown = Shutdown::new();
        if let Err(error) = shutdown::on_signals(&shutdown) {
            return fail(&error, Exit::Failed);
        }
        match worker::serve(options, shutdown).await {
            Ok(()) => Exit::Done,
            Err(error) => fail(&error, Exit::Failed),
        }
    });
    runtime.shutdown_background();
    served
}

fn print(text: &str) -> Exit {
    use std::io::Write;
    // A reader that has seen enough, such as `head`, is no failure.
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => fail(&error, Exit::Failed),
        _ => Exit::Done,
    }
}

fn fail(error: &(dyn Error + 'static), exit: Exit) -> Exit {
    use std::io::Write;
    // Where nobody can be told, the exit code still tells.
    let _ = writeln!(std::io::stderr(), "rbee: {}", chain(error));
    exit
}
