"""What runs in a lane's process: Pulser's sequences and the emulators that execute them"""
