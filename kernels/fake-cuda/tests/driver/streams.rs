//! Streams run late, but in the order that CUDA guarantees.

use crate::common::*;
use cudarc::driver::sys::CUresult;
use cudarc::driver::{result, sys};

const POISON: u32 = u32::MAX;

fn alloc(count: usize) -> u64 {
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::malloc_sync(count * 4) }.unwrap()
}

fn upload(to: u64, from: &[u32], s: sys::CUstream) {
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memcpy_htod_async(to, from, s) }.unwrap();
}

fn sync(s: sys::CUstream) {
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::stream::synchronize(s) }.unwrap();
}

#[test]
fn a_pinned_buffer_is_read_when_the_copy_runs() {
    let _fake = fake("");
    let _primary = Primary::new(0);
    let (s, at) = (stream(), alloc(1));
    let buffer = pinned(1);
    buffer[0] = 1;
    upload(at, buffer, s);
    buffer[0] = 2;
    sync(s);
    assert_eq!(read(at, 1), [2], "it was overwritten too early");
    upload(at, buffer, s);
    sync(s);
    buffer[0] = 3;
    assert_eq!(read(at, 1), [2]);
}

#[test]
fn a_pageable_buffer_is_read_at_once_and_written_late() {
    let _fake = fake("");
    let _primary = Primary::new(0);
    let (s, at) = (stream(), alloc(1));
    let mut value = [1u32];
    upload(at, &value, s);
    value[0] = 2;
    assert_eq!(read(at, 1), [POISON], "the default stream does not wait for a non-blocking stream");
    sync(s);
    assert_eq!((read(at, 1), value), (vec![1], [2]));
}

#[test]
fn copies_to_pinned_memory_arrive_late() {
    let _fake = fake("");
    let _primary = Primary::new(0);
    let (s, at, buffer) = (stream(), alloc(1), pinned(1));
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memcpy_htod_sync(at, &[5u32]) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memcpy_dtoh_async(buffer, at, s) }.unwrap();
    assert_eq!(buffer[0], POISON);
    sync(s);
    assert_eq!(buffer[0], 5);
}

/// Uploads a number and adds one to it on another stream, which may wait for the upload.
fn upload_and_add(waits: bool) -> u32 {
    let _primary = Primary::new(0);
    let add = function(load(KERNELS).unwrap(), "add");
    let (copies, kernels, at, buffer) = (stream(), stream(), alloc(1), pinned(1));
    buffer[0] = 41;
    upload(at, buffer, copies);
    let uploaded = record(copies);
    if waits {
        wait(kernels, uploaded);
    }
    launch(add, at, 1, 1, kernels).unwrap();
    sync(kernels);
    let mut value = [0];
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe {
        result::memcpy_dtoh_async(&mut value, at, kernels).unwrap();
        result::ctx::synchronize().unwrap();
    }
    value[0]
}

#[test]
fn a_missing_event_changes_the_result() {
    let _fake = fake("");
    assert_eq!(upload_and_add(true), 42);
    assert_eq!(upload_and_add(false), POISON.wrapping_add(1));
}

/// Adds one to a number and overwrites it on another stream, which may wait for that. Returns the
/// kernel's result.
fn add_and_overwrite(waits: bool) -> u32 {
    let _primary = Primary::new(0);
    let add = function(load(KERNELS).unwrap(), "add");
    let (copies, kernels, buffer) = (stream(), stream(), pinned(2));
    let (at, result_at) = (alloc(1), alloc(1));
    (buffer[0], buffer[1]) = (41, 99);
    upload(at, &buffer[..1], kernels);
    launch(add, at, 1, 1, kernels).unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memcpy_dtod_async(result_at, at, 4, kernels) }.unwrap();
    if waits {
        wait(copies, record(kernels));
    }
    upload(at, &buffer[1..], copies);
    wait(kernels, record(copies));
    launch(add, at, 1, 1, kernels).unwrap();
    sync(kernels);
    assert!(!waits || read(at, 1) == [100]);
    read(result_at, 1)[0]
}

#[test]
fn overwriting_too_early_is_detected_in_the_early_order() {
    let fake = fake("order=early");
    assert_eq!(add_and_overwrite(true), 42);
    assert_ne!(add_and_overwrite(false), 42);
    fake.handle.configure("order=late").unwrap();
    assert_eq!(add_and_overwrite(false), 42, "the late order hides that");
}

#[test]
fn correct_programs_have_the_same_results_in_every_order() {
    let fake = fake("");
    let random: Vec<String> = (0..20).map(|seed| format!("order=random:{seed}")).collect();
    let fixed = ["order=late", "order=early", "order=blocking", "late=1", "late=0"];
    for order in fixed.into_iter().chain(random.iter().map(String::as_str)) {
        fake.handle.configure(order).unwrap();
        assert_eq!((upload_and_add(true), add_and_overwrite(true)), (42, 42), "{order}");
    }
    let mistakes = (0..20).filter(|seed| {
        fake.handle.configure(&format!("order=random:{seed}")).unwrap();
        (upload_and_add(false), add_and_overwrite(false)) != (42, 42)
    });
    assert!(mistakes.count() >= 5);
}

#[test]
fn polling_makes_progress() {
    let _fake = fake("polls=3");
    let _primary = Primary::new(0);
    let (s, at) = (stream(), alloc(1));
    upload(at, &[1], s);
    let done = record(s);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let query = || code(unsafe { result::event::query(done) });
    assert_eq!([query(), query()], [CUresult::CUDA_ERROR_NOT_READY; 2]);
    assert_eq!(read(at, 1), [POISON]);
    assert_eq!(query(), CUresult::CUDA_SUCCESS);
    assert_eq!(read(at, 1), [1]);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(
        code(unsafe { result::event::query(event()) }),
        CUresult::CUDA_SUCCESS,
        "never recorded"
    );
}

#[test]
fn an_event_keeps_what_it_recorded_last() {
    let _fake = fake("");
    let _primary = Primary::new(0);
    let (a, b, at) = (stream(), stream(), alloc(2));
    upload(at, &[1], a);
    let e = record(a);
    wait(b, e);
    upload(at + 4, &[2], a);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::event::record(e, a) }.unwrap();
    sync(b);
    assert_eq!(read(at, 2), [1, POISON], "the wait was for the first recording");
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::event::synchronize(e) }.unwrap();
    assert_eq!(read(at, 2), [1, 2]);
}

#[test]
fn the_default_stream_waits_for_blocking_streams() {
    let _fake = fake("");
    let _primary = Primary::new(0);
    let at = alloc(1);
    let blocking = result::stream::create(result::stream::StreamKind::Default).unwrap();
    upload(at, &[1], blocking);
    assert_eq!(read(at, 1), [1]);
    upload(at, &[2], result::stream::null());
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memset_d8_async(at, 3, 1, blocking) }.unwrap();
    sync(blocking);
    assert_eq!(read(at, 1), [3]);
}

#[test]
fn a_long_chain_of_waits_is_followed() {
    let _fake = fake("");
    let _primary = Primary::new(0);
    let (streams, at) = ([stream(), stream()], alloc(1));
    let add = function(load(KERNELS).unwrap(), "add");
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memset_d8_async(at, 0, 4, streams[0]) }.unwrap();
    for i in 0..1000 {
        launch(add, at, 1, 1, streams[i % 2]).unwrap();
        wait(streams[(i + 1) % 2], record(streams[i % 2]));
    }
    sync(streams[0]);
    assert_eq!(read(at, 1), [1000]);
}

#[test]
fn two_threads_work_at_the_same_time() {
    let _fake = fake("");
    let _primary = Primary::new(0);
    let context = result::ctx::get_current().unwrap().unwrap() as usize;
    std::thread::scope(|scope| {
        for t in 0..2u32 {
            scope.spawn(move || {
                // SAFETY: handles and memory belong to this test and outlive the call; the driver
                // checks the rest.
                unsafe { result::ctx::set_current(context as sys::CUcontext) }.unwrap();
                let add = function(load(KERNELS).unwrap(), "add");
                let (s, buffer, at) = (stream(), pinned(64), alloc(64));
                for i in 0..50 {
                    buffer.fill(i + t);
                    upload(at, buffer, s);
                    launch(add, at, 64, t, s).unwrap();
                    // SAFETY: handles and memory belong to this test and outlive the call; the
                    // driver checks the rest.
                    unsafe { result::memcpy_dtoh_async(buffer, at, s) }.unwrap();
                    sync(s);
                    assert_eq!(buffer, [i + 2 * t; 64]);
                }
            });
        }
    });
}

#[test]
fn host_functions_run_in_order_and_must_not_call_the_driver() {
    unsafe extern "C" fn note(to: *mut std::ffi::c_void) {
        let mut bytes = 0;
        // SAFETY: handles and memory belong to this test and outlive the call; the driver checks
        // the rest.
        unsafe { *to.cast::<i32>() = sys::cuMemGetInfo_v2(&mut bytes, &mut bytes) as i32 };
    }
    let _fake = fake("");
    let _primary = Primary::new(0);
    let (s, mut seen) = (stream(), 0);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::stream::launch_host_function(s, note, (&raw mut seen).cast()) }.unwrap();
    assert_eq!(seen, 0);
    sync(s);
    assert_eq!(seen, CUresult::CUDA_ERROR_NOT_PERMITTED as i32);
}

#[test]
fn the_log_contains_requests_and_operations_that_ran() {
    let fake = fake("log=1");
    let _primary = Primary::new(0);
    let (s, at, buffer) = (stream(), alloc(1), pinned(1));
    fake.handle.log();
    upload(at, buffer, s);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memset_d8_async(at, 0, 4, s) }.unwrap();
    sync(s);
    let expected = [
        "copy htod 4 #",
        "fill 4 #",
        "sync stream=1",
        "run copy htod 4 stream=1",
        "run fill 4 stream=1",
    ];
    let log = fake.handle.log();
    assert!(log.len() == 5 && log.iter().zip(expected).all(|(l, e)| l.starts_with(e)), "{log:#?}");
    assert!(log[0].ends_with("+0 <- pinned stream=1"));
}
