"""Small wav files for the tests of the speech example."""

import struct
import wave


def write_wav(path, count=400, rate=8000, width=2, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(bytes(range(256)) * (count * width * channels // 256 + 1) if count else b"")
    content = path.read_bytes()  # exactly `count` frames, and a header that says so
    size = count * width * channels
    path.write_bytes(
        content[:4] + struct.pack("<I", 36 + size) + content[8:40] + struct.pack("<I", size) + content[44 : 44 + size]
    )


def write_digits(root, speakers=("anna", "bert", "carl")):
    for speaker in speakers:
        for digit in range(3):
            write_wav(root / f"{digit}_{speaker}_0.wav")
