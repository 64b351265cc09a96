use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    match words.as_slice() {
        [role, record] if role == "shim" => ExitCode::from(rbee::process::shim_main(record.as_ref())),
        _ => ExitCode::from(2),
    }
}
