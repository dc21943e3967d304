"""`python -m mmsr_pt.cli`, which `torchrun` and `accelerate launch` start too."""

from mmsr_pt.cli import main

if __name__ == "__main__":
    main()
