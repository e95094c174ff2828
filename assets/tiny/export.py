"""Flow weights and autoencoder -> a diffusers folder in f16. Usage: export.py FLUX.pt VAE_DIR OUT_DIR
Embedding rows of tokens that no caption uses become zero, so that an unknown word adds nothing."""
import json, sys
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from train_flux import T5_LENGTH, TOKENIZERS, load, models, vocabulary

m = models(); mean, std = load(sys.argv[1], m); m.eval()
t5_used, clip_used, _ = vocabulary(json.load(open('meta.json')))
with torch.no_grad():
    for table, used in ((m['t5'].shared.weight, t5_used), (next(p for k, p in m['clip'].named_parameters() if 'token_embedding' in k), clip_used)):
        unused = torch.ones(len(table), dtype=torch.bool); unused[used] = False; table[unused] = 0
vae = AutoencoderKL.from_pretrained(sys.argv[2]).eval(); vae.register_to_config(scaling_factor=1 / std, shift_factor=mean)
t5_fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(TOKENIZERS + '/t5-tokenizer.json'), eos_token='</s>', pad_token='<pad>', unk_token='<unk>', model_max_length=T5_LENGTH)
clip_fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file('clip_tokenizer.json'), bos_token='<|startoftext|>', eos_token='<|endoftext|>', pad_token='<|endoftext|>', unk_token='<|endoftext|>', model_max_length=77)
scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False)
FluxPipeline(scheduler=scheduler, vae=vae, text_encoder=m['clip'], tokenizer=clip_fast, text_encoder_2=m['t5'], tokenizer_2=t5_fast, transformer=m['dit']).to(torch.float16).save_pretrained(sys.argv[3])
