//! The pinned MLX: versions and hashes of all wheels that a build may fetch.
//!
//! To move to a new MLX, change the version, take the hashes from
//! `python3 -m pip install --dry-run --report - --no-deps --only-binary=:all:
//! --platform manylinux_2_35_<arch> --target x <package>==<version>`, and run the tests.

/// The MLX version that the shim is written against.
pub(crate) const MLX_VERSION: &str = "0.32.4";

/// The oldest MLX whose headers the shim compiles with (the one that `mlx-sys` 0.7 builds).
pub(crate) const OLDEST_MLX: (u32, u32, u32) = (0, 32, 2);

/// A wheel on PyPI, with one SHA-256 per architecture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wheel {
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
    pub(crate) x86_64: &'static str,
    pub(crate) aarch64: &'static str,
}

impl Wheel {
    /// The hash for a Rust target architecture; `None` if there is no such wheel.
    pub(crate) fn sha256(&self, arch: &str) -> Option<&'static str> {
        match arch {
            "x86_64" => Some(self.x86_64),
            "aarch64" => Some(self.aarch64),
            _ => None,
        }
    }
}

/// MLX for the CPU: the library, its headers, BLAS and LAPACK.
pub(crate) const CPU: &[Wheel] = &[Wheel {
    package: "mlx-cpu",
    version: MLX_VERSION,
    x86_64: "0e0a24fa2ce8b6b94d2e6a90604e8813aa8e29fcb918bb2aa01cfb6d133d8cee",
    aarch64: "1289e85e64af1fd16380bf331438bfe4afe875d27afc3e0bcf35f427c488fadd",
}];

/// MLX for CUDA 13, and the NVIDIA libraries that it loads from `../../nvidia`.
pub(crate) const CUDA: &[Wheel] = &[
    Wheel {
        package: "mlx-cuda-13",
        version: MLX_VERSION,
        x86_64: "94cb48fba73e5ee39467e51c35c51c691123359ca17bafd1a24cf92ad6732bee",
        aarch64: "cf8a67b49cebff85cd98b1d118c09f6c8ee966b899a914c50cc74d614b25616e",
    },
    Wheel {
        package: "nvidia-cublas",
        version: "13.10.0.20",
        x86_64: "dcc6d63884c53d07e267ce7e6feac17b2538cebaafec5db865736c3e28e4dc84",
        aarch64: "c5f3418c0a845232a8cabc58f6fa52cfae7d8bd3680d94c3907aca710fd48d70",
    },
    Wheel {
        package: "nvidia-cuda-nvrtc",
        version: "13.5.37",
        x86_64: "86b4d68058807988b7d9af5b44917a0601e9c337f35ccd657bfb3c759ff8d8bc",
        aarch64: "36e4fa2a8ada293f5693d308e531c196ab6f91cf7a0ff479bf96a537d43a6096",
    },
    Wheel {
        package: "nvidia-cuda-runtime",
        version: "13.5.37",
        x86_64: "df2b79a8852f10d1fef8c848489c49eebb5754051bf870202a862831412b179d",
        aarch64: "de2dc5a7367974228b0a69588a9acc9340d3768bef1bf38bf0801eb08497cd2d",
    },
    Wheel {
        package: "nvidia-cudnn-cu13",
        version: "9.27.0.42",
        x86_64: "9677e76f21862eb5da7ee5ed69d544738b2d8b5c3ce7e5ec125c5592e6cdbdc8",
        aarch64: "41b3aae756032ed13b1fcac39c79330cfc5434059d0c5251914e0f6ce582c7ea",
    },
    Wheel {
        package: "nvidia-cufft",
        version: "12.4.0.43",
        x86_64: "0e8385013596b112d29c9ce8c63dc575b308d77636c7169104e18714f03961a8",
        aarch64: "3938644a5b594e06d396e02d6e52bdd84589b3c1f3a8a127a2704211c2abc441",
    },
    Wheel {
        package: "nvidia-cusolver",
        version: "12.4.1.2",
        x86_64: "b3b8e02fd2f2df869369af075dc3a179d43f6f7b85e94632a7dce556697be044",
        aarch64: "1f54c8e0d5b1ebd183b4c5a79f0709fa90241e8254da381ca5b969ee97c8de32",
    },
    Wheel {
        package: "nvidia-nccl-cu13",
        version: "2.32.3",
        x86_64: "1459723080ac889d73a26edfa3e04383a7928ab31ac8f0ec43b3ea9548b04ff3",
        aarch64: "a5bee92b2f4af218c109f8d221c3c9adcc752b94ae0ffcb0ed5abf9341a7724c",
    },
    Wheel {
        package: "nvidia-cusparse",
        version: "12.9.4.2",
        x86_64: "072667e58c851a318738f5527a12eb225cbf058803f2ea451c722d8cf8edddec",
        aarch64: "e2ce97f185c9c4b285e4a8fbf02cb96dd1b8dd66736ebe2f0a8da5f6012a4fb7",
    },
    Wheel {
        package: "nvidia-nvjitlink",
        version: "13.5.37",
        x86_64: "280d7cb9649704145f074b8dbde500de04ce02d0872e066e20a83c17bcaa93eb",
        aarch64: "893f6f9a55b2720ed94913b5ba3332e972da8c78dfa2863d0244403dbd528ffc",
    },
];
