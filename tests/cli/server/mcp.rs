//! MCP, and the description of the native API.

use serde_json::{Value, json};

use super::{Server, decoded, drawn_by_command};

fn call(server: &Server, method: &str, params: &Value) -> Value {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let answer = server.post("/mcp", &body).json();
    assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!(1)));
    answer
}

#[test]
pub fn mcp_tools_draw_and_report_progress() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let hello = call(&server, "initialize", &json!({"protocolVersion": "2025-06-18"}));
    assert_eq!(hello["result"]["protocolVersion"], "2025-06-18");
    let note = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    assert_eq!(server.post("/mcp", &note).status, 202);
    let known = call(&server, "server/discover", &json!({}));
    assert_eq!(known["result"]["supportedVersions"][0], "2026-07-28");
    let tools = call(&server, "tools/list", &json!({}));
    let tools = tools["result"]["tools"].as_array().unwrap();
    let names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["generate_image", "list_models"]);
    let models = call(&server, "tools/call", &json!({"name": "list_models"}));
    assert!(models["result"]["content"][0]["text"].as_str().unwrap().contains("flux-tiny"));

    let arguments = json!({"prompt": "a fox", "steps": 3, "seed": 7});
    let params = json!({"name": "generate_image", "arguments": arguments});
    let answer = call(&server, "tools/call", &params);
    let content = &answer["result"]["content"];
    let reference = drawn_by_command(folder.path(), &["a fox", "--steps", "3", "--seed", "7"]);
    assert!(decoded(&content[0]["data"]) == reference);
    assert_eq!(
        (&content[0]["mimeType"], &content[1]["type"]),
        (&json!("image/png"), &json!("resource_link"))
    );
    assert!(content[2]["text"].as_str().unwrap().ends_with("seed 7"), "{content}");

    let mut params = params;
    params["_meta"] = json!({"progressToken": "p"});
    let body = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params});
    let accept = [("Accept", "application/json, text/event-stream")];
    let answer = server.request("POST", "/mcp", &accept, body.to_string().as_bytes());
    let events = answer.events();
    let (last, notes) = events.split_last().unwrap();
    assert!(decoded(&last.2["result"]["content"][0]["data"]) == reference);
    assert!(notes.iter().all(|note| note.2["params"]["progressToken"] == "p"));
    assert!(notes.iter().all(|note| note.2["method"] == "notifications/progress"));

    let params = json!({"name": "generate_image", "arguments": {"prompt": "x", "size": "17x17"}});
    let refused = call(&server, "tools/call", &params);
    assert_eq!(refused["result"]["isError"], true);
    for (body, status, code) in [
        (json!({"jsonrpc": "2.0", "id": 1, "method": "nothing"}), 404, -32601),
        (json!({"id": 1, "method": "ping"}), 400, -32600),
        (json!([]), 400, -32600),
        (
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x"}}),
            400,
            -32602,
        ),
    ] {
        let answer = server.post("/mcp", &body);
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (status, &json!(code)));
    }
    assert_eq!(server.request("POST", "/mcp", &[], b"{").json()["error"]["code"], -32700);
    assert_eq!(server.get("/mcp").status, 405);
}

#[test]
pub fn the_description_names_paths_that_exist() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--key", "sesame"]);
    let key = [("x-key", "sesame")];
    let whole = server.request("GET", "/openapi.json", &key, b"").json();
    assert_eq!(whole["openapi"], "3.1.0");
    assert!(whole["components"]["securitySchemes"]["key"].is_object());
    for (path, methods) in whole["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{id}", "0").replace("{number}", "0");
            let answer = server.request(&method.to_uppercase(), &path, &key, b"");
            let text = answer.text();
            assert!(answer.status != 405 && !text.contains("nothing at this path"), "{path}");
        }
    }
}
