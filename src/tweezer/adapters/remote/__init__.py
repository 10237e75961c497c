"""Jobs that another machine executes: a QPU, or another Tweezer"""
