//! The program: everything is in the library's `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    flux_fast::cli::main(std::env::args_os())
}
