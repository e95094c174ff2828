//! Stream capture and graphs.

use crate::capture::Mode;
use crate::driver::{Graph, Id, for_work, in_context, note, put};
use crate::status::*;
use crate::stream::Work;
use std::sync::Arc;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamBeginCapture_v2(stream: Id, mode: i32) -> i32 {
    in_context(|d, c| {
        let stream = d.stream(c, stream)?;
        note!(d, "capture begins stream={}", d.streams[&stream].number);
        d.begin_capture(c, stream, Mode::from(mode)?)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(stream: Id, to: *mut Id) -> i32 {
    in_context(|d, c| {
        put(to, 0)?;
        let stream = d.stream(c, stream)?;
        let nodes = Arc::new(d.end_capture(stream)?);
        note!(d, "capture ends nodes={} stream={}", nodes.len(), d.streams[&stream].number);
        let id = d.new_id();
        d.graphs.insert(id, Graph { context: c, nodes });
        put(to, id)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamIsCapturing(stream: Id, to: *mut i32) -> i32 {
    in_context(|d, c| {
        let stream = d.stream(c, stream)?;
        let capture = d.streams[&stream].capture.and_then(|id| d.captures.get(&id));
        put(to, capture.map_or(0, |c| if c.invalid { 2 } else { 1 }))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphGetNodes(graph: Id, nodes: *mut Id, count: *mut usize) -> i32 {
    in_context(|d, _| {
        let graph = d.graphs.get(&graph).ok_or(INVALID_VALUE)?;
        if nodes.is_null() { put(count, graph.nodes.len()) } else { Err(NOT_SUPPORTED) }
    })
}

/// Free on launch, upload, device launch, node priority: the flags of
/// `cuGraphInstantiateWithFlags`.
const ALL_FLAGS: u64 = 15;
const DEVICE_LAUNCH: u64 = 4;
const FREE_ON_LAUNCH: u64 = 1;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphInstantiateWithFlags(to: *mut Id, graph: Id, flags: u64) -> i32 {
    in_context(|d, c| {
        let nodes =
            d.graphs.get(&graph).filter(|g| g.context == c).ok_or(INVALID_VALUE)?.nodes.clone();
        if flags & !ALL_FLAGS != 0
            || flags & (DEVICE_LAUNCH | FREE_ON_LAUNCH) == DEVICE_LAUNCH | FREE_ON_LAUNCH
        {
            return Err(INVALID_VALUE);
        }
        let id = d.new_id();
        d.programs.insert(id, Graph { context: c, nodes });
        put(to, id)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphUpload(program: Id, stream: Id) -> i32 {
    in_context(|d, c| {
        d.stream(c, stream)?;
        d.programs.get(&program).map(|_| ()).ok_or(INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphLaunch(program: Id, stream: Id) -> i32 {
    for_work(|d, c| {
        let stream = d.stream(c, stream)?;
        let nodes =
            d.programs.get(&program).filter(|g| g.context == c).ok_or(INVALID_VALUE)?.nodes.clone();
        note!(d, "graph nodes={} stream={}", nodes.len(), d.streams[&stream].number);
        for node in nodes.iter() {
            if let Work::Launch(launch) = &node.work {
                d.counts.launched(&launch.name);
            }
        }
        d.submit(stream, Work::Graph(nodes)).map(|_| ())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphDestroy(graph: Id) -> i32 {
    in_context(|d, _| d.graphs.remove(&graph).map(|_| ()).ok_or(INVALID_VALUE))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphExecDestroy(program: Id) -> i32 {
    in_context(|d, _| d.programs.remove(&program).map(|_| ()).ok_or(INVALID_VALUE))
}
