"""comfy-api-simplified, a client of ComfyUI that connects after it has sent its prompt."""

from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper
from comfy_api_simplified.exceptions import ComfyApiError

GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {
        "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        "seed": 5, "steps": 4, "cfg": 1, "denoise": 1, "sampler_name": "euler",
        "scheduler": "simple"}, "_meta": {"title": "Sample"}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "flux-tiny"},
          "_meta": {"title": "Load"}},
    "5": {"class_type": "EmptyLatentImage", "inputs":
          {"width": 128, "height": 128, "batch_size": 1}, "_meta": {"title": "Size"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]},
          "_meta": {"title": "Prompt"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]},
          "_meta": {"title": "Negative"}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]},
          "_meta": {"title": "Decode"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"},
          "_meta": {"title": "Save Image"}},
}


def check(server):
    api = ComfyApiWrapper(server.url)
    graph = ComfyWorkflowWrapper(GRAPH)
    graph.set_node_param("Prompt", "text", "a fox")
    reference = server.drawn("a fox", "--seed", "5", "--steps", "4")
    images = api.queue_and_wait_images(graph, "Save Image")
    assert list(images.values()) == [reference], list(images)

    start = server.folder / "start.png"
    start.write_bytes(reference)
    uploaded = api.upload_image(str(start))
    graph["10"] = {"class_type": "LoadImage", "_meta": {"title": "Image"}, "inputs": {
        "image": f"{uploaded['subfolder']}/{uploaded['name']}"}}
    graph["5"] = {"class_type": "VAEEncode", "_meta": {"title": "Encode"},
                  "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}}
    graph["3"]["inputs"]["denoise"] = 0.5
    graph["3"]["inputs"]["steps"] = 2
    images = api.queue_and_wait_images(graph, "Save Image")
    drawn = server.drawn("a fox", "--seed", "5", "--steps", "4", "-i", str(start),
                         "--strength", "0.5")
    assert list(images.values()) == [drawn]

    graph["8"]["class_type"] = "UltimateUpscale"
    try:
        api.queue_prompt(graph)
    except ComfyApiError as error:
        assert "UltimateUpscale" in str(error), error
    else:
        raise AssertionError("an unknown node was not refused")
