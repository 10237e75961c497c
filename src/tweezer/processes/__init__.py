"""The processes of Tweezer: the only modules that assemble all other parts."""
