use rbee::cli::{self, Action, Request};
use rbee::config::Settings;
use rbee::shutdown::{self, Shutdown};
use rbee::{process, wire, worker};
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if let [role, record] = words.as_slice()
        && role == "shim"
    {
        return ExitCode::from(process::shim_main(record.as_ref()));
    }
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("RBEE_LOG"))
        .with_writer(std::io::stderr)
        .init();
    match cli::parse(std::env::args_os()) {
        Ok(Request::Command(parsed)) if parsed.command.action == Action::WorkerServe => {
            let settings = Settings::of_process(parsed).expect("settings");
            let options = match worker::Options::from_settings(&settings) {
                Ok(options) => options,
                Err(error) => {
                    eprintln!("rbee: {error}");
                    return ExitCode::from(2);
                }
            };
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(async {
                let shutdown = Shutdown::new();
                shutdown::on_signals(&shutdown).expect("signals");
                match worker::serve(options, shutdown).await {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(error) => {
                        eprintln!("rbee: {}", wire::failure::chain(&error));
                        ExitCode::from(1)
                    }
                }
            })
        }
        Ok(_) => ExitCode::from(2),
        Err(error) => {
            eprintln!("rbee: {error}");
            ExitCode::from(2)
        }
    }
}
