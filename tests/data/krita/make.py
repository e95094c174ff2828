"""Makes the graphs in this folder with the code of Krita AI Diffusion 1.53, without Krita.

    QT_QPA_PLATFORM=offscreen python make.py PLUGIN

PLUGIN is a checkout of github.com/Acly/krita-ai-diffusion with its submodule `websockets`. It needs
PyQt5. The canvas is drawn here, and so is what is selected.
"""

import base64
import json
import sys
from pathlib import Path

plugin = Path(sys.argv[1])
sys.path[:0] = [str(plugin / "tests" / "mock"), str(plugin)]

from PyQt5.QtCore import QCoreApplication, QRect
from PyQt5.QtGui import QColor, QImage, QPainter

app = QCoreApplication([])

from ai_diffusion.backend import workflow
from ai_diffusion.backend.api import (
    ConditioningInput, ControlInput, InpaintMode, WorkflowKind,
)
from ai_diffusion.backend.client import CheckpointInfo, ClientModels
from ai_diffusion.backend.resolution import compute_bounds, compute_relative_bounds
from ai_diffusion.backend.resources import (
    ControlMode, ResourceKind, UpscalerName, resource_id,
)
from ai_diffusion.files import FileCollection, FileFormat, FileLibrary
from ai_diffusion.image import Bounds, Extent, Image, Mask
from ai_diffusion.model.model import calc_selection_pre_process, get_selection_modifiers
from ai_diffusion.settings import PerformanceSettings, settings
from ai_diffusion.style import Arch, Style

CHECKPOINTS = {
    Arch.flux: "flux-tiny",
    Arch.flux_k: "flux1-kontext-dev.safetensors",
    Arch.flux2_4b: "flux-2-klein-4b.safetensors",
}
SEED, PROMPT = 7, "a red fox"
FILES = FileLibrary(FileCollection(), FileCollection())


def models(extra=()):
    """What the plugin learns of the server when it connects."""
    found = ClientModels()
    found.checkpoints = {
        name: CheckpointInfo(name, arch, FileFormat.checkpoint)
        for arch, name in CHECKPOINTS.items()
    }
    found.resources = {
        resource_id(ResourceKind.upscaler, Arch.all, name): "lanczos, without " + name.value
        for name in (UpscalerName.default, UpscalerName.fast_2x, UpscalerName.fast_3x,
                     UpscalerName.fast_4x)
    }
    mat = "none, without MAT_Places512_G_fp16.safetensors"
    found.resources[resource_id(ResourceKind.inpaint, Arch.all, "default")] = mat
    for arch in CHECKPOINTS:
        vae = "flux2-vae.safetensors" if arch.is_flux2 else "ae.safetensors"
        found.resources[resource_id(ResourceKind.vae, arch, "default")] = vae
    found.resources.update(extra)
    return found


def style(arch, steps=3):
    made = Style(Path("default.json"))
    made.checkpoints = [CHECKPOINTS[arch]]
    made.style_prompt = made.negative_prompt = ""
    made.sampler = "Flux 2 - Euler" if arch.is_flux2 else "Flux - Euler simple"
    made.cfg_scale = 1.0 if arch.is_flux2 else 3.5
    made.sampler_steps = steps
    return made


def canvas(extent):
    image = QImage(extent.width, extent.height, QImage.Format_ARGB32)
    painter = QPainter(image)
    for row in range(0, extent.height, 32):
        for column in range(0, extent.width, 32):
            color = QColor(column * 255 // extent.width, row * 255 // extent.height, 90)
            painter.fillRect(QRect(column, row, 32, 32), color)
    painter.end()
    return Image(image)


def select(extent, bounds, modifiers):
    """The mask of a rectangular selection: `KritaDocument.create_mask_from_selection`."""
    size = bounds.extent.diagonal
    pad = max(int(modifiers.feather_rel * size), modifiers.feather_min_px)
    pad += modifiers.pad_offset_px + int(modifiers.pad_rel * size)
    image = QImage(extent.width, extent.height, QImage.Format_Grayscale8)
    image.fill(255 if modifiers.invert else 0)
    painter = QPainter(image)
    inside = 0 if modifiers.invert else 255
    painter.fillRect(QRect(*bounds), QColor(inside, inside, inside))
    painter.end()
    whole = Bounds(0, 0, *extent)
    padded = Bounds.pad(
        whole if modifiers.invert else bounds, pad, multiple=modifiers.multiple,
        min_size=modifiers.size_min_px, square=modifiers.square,
    )
    padded = Bounds.clamp(padded, extent)
    return Mask(padded, image.copy(QRect(*padded)))


def write(name, work, known):
    graph = workflow.create(work, known)
    images = {id: base64.b64encode(bytes(data)).decode() for id, data in graph.image_data.items()}
    text = json.dumps({"prompt": graph.root, "images": images}, indent=1)
    (Path(__file__).parent / f"{name}.json").write_text(text + "\n")


def prepared(kind, arch, known, inpaint_mode=None, edit=False, control=(), prompt=PROMPT, **more):
    conditioning = ConditioningInput(prompt)
    conditioning.edit_reference = edit
    conditioning.control = list(control)
    made = style(arch)
    prompts = workflow.prepare_prompts(conditioning, made, SEED, arch, inpaint_mode, files=FILES)
    canvas_input = more.pop("canvas")
    return workflow.prepare(
        kind, canvas_input, prompts.conditioning, made, SEED, known, FILES,
        PerformanceSettings(batch_size=1), **more,
    )


def selection(name, mode, strength=1.0, arch=Arch.flux, extent=Extent(320, 256),
              bounds=Bounds(120, 90, 100, 80), edit=False, prompt=PROMPT, extra=()):
    """A selection as `DocumentModel._prepare_workflow` handles it."""
    known = models(extra)
    modifiers = get_selection_modifiers(arch, mode, strength)
    mask = select(extent, bounds, modifiers)
    is_whole = strength == 1.0 and not edit
    kind = WorkflowKind.inpaint if is_whole else WorkflowKind.refine_region
    context = compute_bounds(
        extent, mask.bounds, WorkflowKind.generate if is_whole else WorkflowKind.refine
    )
    image = Image.crop(canvas(extent), context)
    _, mask.bounds = compute_relative_bounds(context, mask.bounds)
    conditioning = ConditioningInput(prompt)
    instruction = mode if strength == 1.0 else None
    prompts = workflow.prepare_prompts(
        conditioning, style(arch), SEED, arch, instruction, files=FILES
    )
    params = workflow.detect_inpaint(mode, mask.bounds, arch, prompts.conditioning, strength)
    params = calc_selection_pre_process(params, bounds, modifiers)
    work = prepared(
        kind, arch, known, inpaint_mode=instruction, edit=edit, prompt=prompt, canvas=image,
        mask=mask, strength=strength, inpaint=params,
    )
    write(name, work, known)


def main():
    known = models()
    square = Extent(256, 256)
    write("generate", prepared(WorkflowKind.generate, Arch.flux, known, canvas=square), known)
    odd = Extent(270, 250)
    write("generate_odd", prepared(WorkflowKind.generate, Arch.flux, known, canvas=odd), known)
    refine = prepared(WorkflowKind.refine, Arch.flux, known, canvas=canvas(square), strength=0.6)
    write("refine", refine, known)
    for mode in ("fill", "expand", "add_object", "remove_object", "replace_background"):
        selection(mode, InpaintMode[mode])
    selection("refine_region", InpaintMode.fill, strength=0.6)
    odd_bounds = Bounds(121, 91, 101, 77)
    selection("fill_odd", InpaintMode.fill, extent=Extent(330, 250), bounds=odd_bounds)
    # An empty prompt takes a reference from the canvas, with Redux; and an inpainting ControlNet.
    redux = {
        resource_id(ResourceKind.ip_adapter, Arch.flux, ControlMode.reference):
            "flux1-redux-dev.safetensors",
        resource_id(ResourceKind.clip_vision, Arch.flux, "redux"):
            "sigclip_vision_patch14_384.safetensors",
        resource_id(ResourceKind.controlnet, Arch.flux, ControlMode.inpaint):
            "flux.1-dev-controlnet-inpaint.safetensors",
    }
    selection("fill_with_redux", InpaintMode.fill, prompt="", extra=redux)
    union = {
        resource_id(ResourceKind.controlnet, Arch.flux, ControlMode.universal): "union.safetensors"
    }
    known = models(union)
    lines = ControlInput(ControlMode.line_art, canvas(square), 0.8, (0.0, 0.7))
    depth = ControlInput(ControlMode.depth, canvas(Extent(128, 128)), 0.5)
    work = prepared(
        WorkflowKind.generate, Arch.flux, known, control=(lines, depth), canvas=square
    )
    write("control", work, known)
    known = models()
    for arch, name in ((Arch.flux_k, "kontext"), (Arch.flux2_4b, "klein")):
        work = prepared(
            WorkflowKind.refine, arch, known, edit=True, canvas=canvas(square), strength=1.0
        )
        write(name, work, known)
    lora = {
        resource_id(ResourceKind.lora, Arch.flux2_4b, ControlMode.inpaint):
            "flux-2-klein-4B-outpaint-lora.safetensors"
    }
    selection("klein_fill", InpaintMode.fill, arch=Arch.flux2_4b, extra=lora)
    # Without soft edges, and in a size that is drawn as it is.
    settings.selection_feather = 0
    place = Bounds(200, 150, 130, 110)
    selection("hard_fill", InpaintMode.fill, extent=Extent(512, 512), bounds=place)
    selection("hard_refine_region", InpaintMode.fill, strength=0.6)


main()
