//! The role comes from the program's name or the first word; only this file ends the process.

use rbee::cli::{self, Action, Request};
use rbee::config::Settings;
use rbee::exit::Exit;
use rbee::keeper::commands::links;
use rbee::wire::failure::chain;
use std::error::Error;

fn main() -> Exit {
    match cli::parse(std::env::args_os()) {
        Ok(Request::Help(text)) => print(&text),
        Ok(Request::Version { .. }) => print(&format!("rbee {}\n", rbee::wire::VERSION)),
        Ok(Request::Command(parsed)) => match Settings::of_process(parsed) {
            Ok(settings) => dispatch(&settings),
            Err(error) => fail(&error, Exit::Usage),
        },
        Err(error) => fail(&error, Exit::Usage),
    }
}

fn dispatch(settings: &Settings) -> Exit {
    match settings.command().action {
        Action::Links => {
            links::run(settings).map_or_else(|error| fail(&error, Exit::Failed), |()| Exit::Done)
        }
        Action::Shim => match rbee::process::shim_main(settings.positionals()[0].as_ref()) {
            0 => Exit::Done,
            _ => Exit::Failed,
        },
        Action::WorkerServe => worker(settings),
        _ => Exit::Failed,
    }
}

fn worker(settings: &Settings) -> Exit {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("RBEE_LOG"))
        .with_writer(std::io::stderr)
        .init();
    let options = match rbee::worker::Options::from_settings(settings) {
        Ok(options) => options,
        Err(error) => return fail(&error, Exit::Usage),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, Exit::Failed),
    };
    let shutdown = rbee::shutdown::Shutdown::new();
    runtime.block_on(async {
        if let Err(error) = rbee::shutdown::on_signals(&shutdown) {
            return fail(&error, Exit::Failed);
        }
        match rbee::worker::serve(options, shutdown.clone()).await {
            Ok(()) => Exit::Done,
            Err(error) => fail(&error, Exit::Failed),
        }
    })
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
    eprintln!("rbee: {}", chain(error));
    exit
}
