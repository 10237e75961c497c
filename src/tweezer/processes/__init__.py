"""The processes of Tweezer: the only modules that put the parts together"""
