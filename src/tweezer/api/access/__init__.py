"""Who is calling: keys, log-ins, links, and the guard against repeated calls"""
