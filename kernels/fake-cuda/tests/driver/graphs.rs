//! Capture and graphs.

use crate::common::*;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode_enum as Mode};
use cudarc::driver::{result, sys};

const THREAD_LOCAL: Mode = Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

fn begin(s: sys::CUstream, mode: Mode) {
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::stream::begin_capture(s, mode) }.unwrap();
}

fn end(s: sys::CUstream) -> Result<sys::CUgraph, result::DriverError> {
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::stream::end_capture(s) }
}

fn sync(s: sys::CUstream) {
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::stream::synchronize(s) }.unwrap();
}

#[test]
fn a_graph_of_two_streams_is_replayed() {
    let fake = fake("");
    for order in ["order=late", "order=early", "order=random:7", "order=blocking"] {
        fake.handle.configure(order).unwrap();
        let _primary = Primary::new(0);
        let add = function(load(KERNELS).unwrap(), "add");
        let (main, side, buffer) = (stream(), stream(), pinned(1));
        // SAFETY: handles and memory belong to this test and outlive the call; the driver checks
        // the rest.
        let at = unsafe { result::malloc_sync(8) }.unwrap();
        begin(main, THREAD_LOCAL);
        // SAFETY: handles and memory belong to this test and outlive the call; the driver checks
        // the rest.
        unsafe { result::memcpy_htod_async(at, buffer, main) }.unwrap();
        wait(side, record(main));
        launch(add, at, 1, 1, side).unwrap();
        // SAFETY: handles and memory belong to this test and outlive the call; the driver checks
        // the rest.
        unsafe { result::memset_d8_async(at + 4, 0, 4, main) }.unwrap();
        wait(main, record(side));
        launch(add, at, 2, 10, main).unwrap();
        let graph = end(main).unwrap();
        assert_eq!(read(at, 2), [u32::MAX; 2], "nothing has run yet");
        let mut nodes = 0;
        // SAFETY: handles and memory belong to this test and outlive the call; the driver checks
        // the rest.
        unsafe { sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut nodes).result() }.unwrap();
        assert_eq!(nodes, 4);
        fake.handle.report();
        // SAFETY: handles and memory belong to this test and outlive the call; the driver checks
        // the rest.
        let program =
            unsafe { result::graph::instantiate(graph, CUgraphInstantiate_flags(0)) }.unwrap();
        // SAFETY: handles and memory belong to this test and outlive the call; the driver checks
        // the rest.
        unsafe { result::graph::destroy(graph) }.unwrap();
        for value in [100, 200] {
            buffer[0] = value;
            // SAFETY: handles and memory belong to this test and outlive the call; the driver
            // checks the rest.
            unsafe { result::graph::launch(program, main) }.unwrap();
            sync(main);
            assert_eq!(read(at, 2), [value + 11, 10], "{order}");
        }
        // SAFETY: handles and memory belong to this test and outlive the call; the driver checks
        // the rest.
        unsafe { result::graph::exec_destroy(program) }.unwrap();
        let report = fake.handle.report();
        assert!(report.contains(r#"{"kernel":"add","launches":4,"runs":4,"#), "{report}");
    }
}

#[test]
fn forbidden_calls_invalidate_a_capture() {
    type Call = fn(sys::CUstream) -> Result<(), result::DriverError>;
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let alloc: Call = |_| unsafe { result::malloc_sync(4) }.map(|_| ());
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let sync_stream: Call = |s| unsafe { result::stream::synchronize(s) };
    let sync_all: Call = |_| result::ctx::synchronize();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let pin: Call = |_| unsafe { result::malloc_host(4, 0) }.map(|_| ());
    let _fake = fake("");
    let _primary = Primary::new(0);
    let s = stream();
    for call in [alloc, sync_stream, sync_all, pin] {
        begin(s, THREAD_LOCAL);
        assert_eq!(code(call(s)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert_eq!(code(end(s)), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
    begin(s, Mode::CU_STREAM_CAPTURE_MODE_RELAXED);
    alloc(s).unwrap();
    assert_eq!(code(sync_stream(s)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(code(end(s)), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn other_threads_disturb_only_a_global_capture() {
    let _fake = fake("");
    let _primary = Primary::new(0);
    let context = result::ctx::get_current().unwrap().unwrap() as usize;
    let s = stream();
    for (mode, expected) in [
        (Mode::CU_STREAM_CAPTURE_MODE_GLOBAL, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
        (THREAD_LOCAL, CUresult::CUDA_SUCCESS),
    ] {
        begin(s, mode);
        // SAFETY: handles and memory belong to this test and outlive the call; the driver checks
        // the rest.
        let other = std::thread::spawn(move || unsafe {
            result::ctx::set_current(context as sys::CUcontext).unwrap();
            code(result::malloc_sync(4))
        });
        assert_eq!(other.join().unwrap(), expected);
        assert_eq!(end(s).is_ok(), expected == CUresult::CUDA_SUCCESS);
    }
}

#[test]
fn captures_must_be_joined_and_separate() {
    let _fake = fake("");
    let _primary = Primary::new(0);
    let (main, side) = (stream(), stream());
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let at = unsafe { result::malloc_sync(4) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let fill = |s| unsafe { result::memset_d8_async(at, 0, 4, s) }.unwrap();
    begin(main, THREAD_LOCAL);
    fill(main);
    let forked = record(main);
    wait(side, forked);
    fill(side);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(code(unsafe { result::event::query(forked) }), CUresult::CUDA_ERROR_CAPTURED_EVENT);
    assert_eq!(code(end(main)), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    begin(main, THREAD_LOCAL);
    fill(main);
    wait(side, record(main));
    fill(side);
    assert_eq!(code(end(side)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    assert_eq!(code(end(main)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    fill(side);
    let outside = record(side);
    begin(main, THREAD_LOCAL);
    let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let outcome = unsafe { result::stream::wait_event(main, outside, flags) };
    assert_eq!(code(outcome), CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    assert_eq!(code(end(main)), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let outcome = unsafe { result::stream::begin_capture(result::stream::null(), THREAD_LOCAL) };
    assert_eq!(code(outcome), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
}
