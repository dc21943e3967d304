"""Many runs asked one question: the tables of the paper, its figures, transfer against scratch."""
