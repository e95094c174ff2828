//! Gives the shared library the name by which programs ask for the real driver: once it has been loaded by its path, a
//! later `dlopen("libcuda.so")` in the same process finds it. The file itself keeps its own name, lest `cargo run` put a
//! fake driver on everybody's search path.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    }
}
