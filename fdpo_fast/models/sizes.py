"""The published architectures, and tiny ones of the same kinds, as what differs from the defaults of their classes."""

from __future__ import annotations

from typing import Any

_SD_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_SDXL_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
_TINY_VAE = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 32}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
_PROJECTED = {"architectures": ["CLIPTextModelWithProjection"]}
_CLIP_BIG_G = {
    **_PROJECTED,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_T5_XXL = {
    "architectures": ["T5EncoderModel"],
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu_new",
}
_VAE_SD3 = {
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_VAE_FLUX = _VAE_SD3 | {"scaling_factor": 0.3611, "shift_factor": 0.1159}
_TINY_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "projection_dim": 32,
    "vocab_size": 1000,
}
_TINY_T5 = {
    "architectures": ["T5EncoderModel"],
    "vocab_size": 1000,
    "d_model": 96,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
}

PRESETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "pipeline": "StableDiffusionPipeline",
        "unet": _SD_BLOCKS
        | {
            "block_out_channels": (320, 640, 1280, 1280),
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
            "sample_size": 64,
        },
        "vae": _VAE | {"scaling_factor": 0.18215},
        "text_encoder": _CLIP_L,
    },
    "sdxl": {
        "pipeline": "StableDiffusionXLPipeline",
        "unet": _SDXL_BLOCKS
        | {
            "block_out_channels": (320, 640, 1280),
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
        },
        "vae": _VAE | {"scaling_factor": 0.13025},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_BIG_G,
    },
    "tiny_sd": {
        "pipeline": "StableDiffusionPipeline",
        "unet": {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (4, 8),
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "cross_attention_dim": 8,
            "norm_num_groups": 2,
            "sample_size": 32,
        },
        "vae": _TINY_VAE | {"scaling_factor": 0.18215},
        "text_encoder": _TINY_CLIP | {"hidden_size": 8, "projection_dim": 8},
    },
    "tiny_sdxl": {
        "pipeline": "StableDiffusionXLPipeline",
        "unet": {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (2, 4),
            "layers_per_block": 2,
            "attention_head_dim": (2, 4),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "transformer_layers_per_block": (1, 2),
            "projection_class_embeddings_input_dim": 80,  # 6 * 8 + 32
            "cross_attention_dim": 64,
            "norm_num_groups": 1,
            "sample_size": 32,
        },
        "vae": _TINY_VAE | {"scaling_factor": 0.13025},
        "text_encoder": _TINY_CLIP,
        "text_encoder_2": _TINY_CLIP | _PROJECTED | {"hidden_act": "gelu"},
    },
    "sd35m": {
        "pipeline": "StableDiffusion3Pipeline",
        "prediction": "flow_match",
        "transformer": {
            "_class_name": "SD3Transformer2DModel",
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
        "vae": _VAE | _VAE_SD3,
        "text_encoder": _CLIP_L | _PROJECTED | {"projection_dim": 768},
        "text_encoder_2": _CLIP_BIG_G,
        "text_encoder_3": _T5_XXL,
    },
    "tiny_sd3": {
        "pipeline": "StableDiffusion3Pipeline",
        "prediction": "flow_match",
        "transformer": {
            "_class_name": "SD3Transformer2DModel",
            "sample_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 96,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 64,
            "pos_embed_max_size": 48,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        "vae": _TINY_VAE | _VAE_SD3 | {"latent_channels": 4},
        "text_encoder": _TINY_CLIP | _PROJECTED,
        "text_encoder_2": _TINY_CLIP | _PROJECTED | {"hidden_act": "gelu"},
        "text_encoder_3": _TINY_T5,
    },
    "flux": {
        "pipeline": "FluxPipeline",
        "prediction": "flow_match_by_size",
        "transformer": {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True},
        "vae": _VAE | _VAE_FLUX,
        "text_encoder": _CLIP_L | {"projection_dim": 768},
        "text_encoder_2": _T5_XXL,
    },
    "tiny_flux": {
        "pipeline": "FluxPipeline",
        "prediction": "flow_match_by_size",
        "transformer": {
            "_class_name": "FluxTransformer2DModel",
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 96,
            "pooled_projection_dim": 32,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
        },
        "vae": _TINY_VAE | _VAE_FLUX | {"latent_channels": 4},
        "text_encoder": _TINY_CLIP,
        "text_encoder_2": _TINY_T5,
    },
    "z_image": {
        "pipeline": "ZImagePipeline",
        "prediction": "flow_match",
        "transformer": {"_class_name": "ZImageTransformer2DModel"},
        "vae": _VAE | _VAE_FLUX,
        "text_encoder": {
            "architectures": ["Qwen3ForCausalLM"],
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
    },
    "tiny_z_image": {
        "pipeline": "ZImagePipeline",
        "prediction": "flow_match",
        "transformer": {
            "_class_name": "ZImageTransformer2DModel",
            "in_channels": 4,
            "dim": 48,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 3,
            "n_kv_heads": 3,
            "cap_feat_dim": 32,
            "axes_dims": [4, 6, 6],
        },
        "vae": _TINY_VAE | _VAE_FLUX | {"latent_channels": 4},
        "text_encoder": {
            "architectures": ["Qwen3Model"],
            "vocab_size": 1000,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
    },
}
"""What differs, by preset and component, from the defaults of the models' classes."""
