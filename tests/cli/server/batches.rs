//! OpenAI's files and batches.

use serde_json::{Value, json};

use super::{Answer, Server, decoded, drawn_by_command, wait_for};

fn upload(server: &Server, purpose: &str, bytes: &[u8]) -> Answer {
    let head = format!(
        "--xyz\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n\
         --xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\
         Content-Type: application/jsonl\r\n\r\n"
    );
    let body = [head.as_bytes(), bytes, b"\r\n--xyz--\r\n"].concat();
    let form = [("Content-Type", "multipart/form-data; boundary=xyz")];
    server.request("POST", "/v1/files", &form, &body)
}

/// The id of a batch of `lines`.
fn batch(server: &Server, endpoint: &str, lines: &[Value]) -> String {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let file = upload(server, "batch", text.as_bytes()).json();
    let body = json!({"input_file_id": file["id"], "endpoint": endpoint,
                      "completion_window": "24h", "metadata": {"a": "b"}});
    let batch = server.post("/v1/batches", &body);
    assert_eq!(batch.status, 200, "{}", batch.text());
    batch.json()["id"].as_str().unwrap().to_string()
}

fn wait(server: &Server, id: &str, status: &str) -> Value {
    wait_for(&format!("batch {id} to be {status}"), || {
        let batch = server.get(&format!("/v1/batches/{id}")).json();
        (batch["status"] == status).then_some(batch)
    })
}

fn line(id: &str, endpoint: &str, body: Value) -> Value {
    json!({"custom_id": id, "method": "POST", "url": endpoint, "body": body})
}

#[test]
pub fn a_batch_draws_every_line_and_goes_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let server = Server::start(&data, &[]);
    let endpoint = "/v1/images/generations";
    let mut lines = vec![
        line("one", endpoint, json!({"prompt": "a fox", "steps": 3, "seed": 7})),
        line("bad", endpoint, json!({"prompt": "a fox", "size": "17x17"})),
    ];
    let more = (0..6)
        .map(|n| line(&format!("n{n}"), endpoint, json!({"prompt": "a dog", "steps": 2, "n": 2})));
    lines.extend(more);
    let id = batch(&server, endpoint, &lines);
    wait_for("the first lines", || {
        let batch = server.get(&format!("/v1/batches/{id}")).json();
        (batch["request_counts"]["completed"].as_u64()? >= 2).then_some(())
    });
    drop(server);
    let server = Server::start(&data, &[]);
    let done = wait(&server, &id, "completed");
    assert_eq!(done["request_counts"], json!({"total": 8, "completed": 7, "failed": 1}));
    assert_eq!((&done["object"], &done["metadata"]["a"]), (&json!("batch"), &json!("b")));
    let content = |field: &str| {
        let file = done[field].as_str().unwrap();
        let text = server.get(&format!("/v1/files/{file}/content")).text();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>()
    };
    let answers = content("output_file_id");
    let ids: Vec<_> = answers.iter().map(|a| a["custom_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["one", "n0", "n1", "n2", "n3", "n4", "n5"]);
    let reference = drawn_by_command(folder.path(), &["a fox", "--steps", "3", "--seed", "7"]);
    assert!(decoded(&answers[0]["response"]["body"]["data"][0]["b64_json"]) == reference);
    let errors = content("error_file_id");
    assert_eq!(
        (&errors[0]["custom_id"], &errors[0]["response"]["status_code"]),
        (&json!("bad"), &json!(422))
    );
    assert_eq!(server.get("/v1/batches").json()["data"].as_array().unwrap().len(), 1);
    let jobs = server.get("/api/v2/jobs").json();
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 7, "no line is drawn twice");
}

#[test]
pub fn batches_are_cancelled_and_wrong_ones_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let endpoint = "/v1/images/generations";
    let long = json!({"prompt": "a fox", "steps": 1000, "n": 8});
    let id =
        batch(&server, endpoint, &[line("a", endpoint, long.clone()), line("b", endpoint, long)]);
    wait_for("a running job", || {
        let jobs = server.get("/api/v2/jobs?status=running").json();
        (!jobs["jobs"].as_array()?.is_empty()).then_some(())
    });
    let answer = server.post(&format!("/v1/batches/{id}/cancel"), &json!({}));
    assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("cancelling")));
    let done = wait(&server, &id, "cancelled");
    assert_eq!(done["request_counts"], json!({"total": 2, "completed": 0, "failed": 0}));
    assert_eq!(server.post(&format!("/v1/batches/{id}/cancel"), &json!({})).status, 409);

    let id = batch(&server, endpoint, &[line("a", "/v1/chat/completions", json!({}))]);
    let failed = server.get(&format!("/v1/batches/{id}")).json();
    assert_eq!(
        (&failed["status"], &failed["errors"]["data"][0]["line"]),
        (&json!("failed"), &json!(1))
    );
    let file = upload(&server, "vision", b"x").json()["id"].as_str().unwrap().to_string();
    for (body, parameter, status) in [
        (json!({}), "input_file_id", 422),
        (json!({"input_file_id": "file-0", "endpoint": endpoint}), "input_file_id", 404),
        (json!({"input_file_id": file, "endpoint": "/v1/embeddings"}), "endpoint", 422),
        (
            json!({"input_file_id": file, "endpoint": endpoint, "completion_window": "1h"}),
            "completion_window",
            422,
        ),
    ] {
        let answer = server.post("/v1/batches", &body);
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (status, &json!(parameter)));
    }
    assert_eq!(upload(&server, "fun", b"x").status, 422);
    assert_eq!(server.get(&format!("/v1/files/{file}")).json()["bytes"], 1);
    let gone = server.request("DELETE", &format!("/v1/files/{file}"), &[], b"").json();
    assert_eq!(gone["deleted"], true);
    for path in [format!("/v1/files/{file}"), "/v1/files/../jobs".into(), "/v1/batches/x".into()] {
        assert_eq!(server.get(&path).status, 404, "{path}");
    }
}
