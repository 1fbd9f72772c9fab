//! Programs that only pass on what they are asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

/// One question to the lab.
pub fn ask(dir: &Path, request: &Value) -> std::io::Result<Value> {
    let mut stream = UnixStream::connect(dir.join("sim.sock"))?;
    writeln!(stream, "{request}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

pub fn virsh(called: &str, args: &[String]) -> ExitCode {
    let dir = crate::virsh::lab_of(called);
    let args: Vec<&String> = match args.first().map(String::as_str) {
        Some("-c" | "--connect") => args[2..].iter().collect(),
        _ => args.iter().collect(),
    };
    let mut stdin = String::new();
    if args.iter().any(|a| a.contains("/dev/stdin")) {
        let _ = std::io::stdin().read_to_string(&mut stdin);
    }
    match ask(&dir, &json!({"virsh": args, "stdin": stdin})) {
        Ok(answer) => {
            let _ = std::io::stdout().write_all(answer["out"].as_str().unwrap_or_default().as_bytes());
            let _ = std::io::stderr().write_all(answer["err"].as_str().unwrap_or_default().as_bytes());
            ExitCode::from(u8::try_from(answer["code"].as_u64().unwrap_or(1)).unwrap_or(1))
        }
        Err(error) => {
            eprintln!("error: failed to connect to the hypervisor\nerror: Failed to connect socket: {error}");
            ExitCode::FAILURE
        }
    }
}

pub fn pid(dir: &str, node: &str) -> ExitCode {
    match ask(Path::new(dir), &json!({"init": node})).map(|answer| answer["pid"].as_i64()) {
        Ok(Some(pid)) => {
            println!("{pid}");
            return ExitCode::SUCCESS;
        }
        Ok(None) => eprintln!("{node} does not run"),
        Err(error) => eprintln!("the lab in {dir} does not answer: {error}"),
    }
    ExitCode::FAILURE
}

/// `convert OPTIONS FROM TO` copies, as an image here is an archive of what is on the disk; `rebase` has nothing to do.
pub fn qemu_img(args: &[String]) -> ExitCode {
    match args {
        [verb, .., from, to] if verb == "convert" => {
            return match std::fs::copy(from, to) {
                Ok(_) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("qemu-img: error while writing: {error}");
                    ExitCode::FAILURE
                }
            };
        }
        [verb, ..] if verb == "rebase" => return ExitCode::SUCCESS,
        _ => {}
    }
    println!("{}", json!({"virtual-size": 10_737_418_240_u64, "format": "qcow2"}));
    ExitCode::SUCCESS
}
