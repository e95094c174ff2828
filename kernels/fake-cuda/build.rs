//! Gives the shared library the name of the real driver: once it has been loaded by its path, a
//! later `dlopen("libcuda.so")` in the same process finds it. The file has another name, so that
//! `cargo run` does not put a fake driver on the search path.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    }
}
