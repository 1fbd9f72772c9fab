//! p1, the program: everything is in the library.

fn main() -> std::process::ExitCode {
    p1::main()
}
