"""GStreamer's RTSP server as a camera, for tests; run by the system's Python: `python3 gstreamer_camera.py FILM CODEC`.

Needs Debian's gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good and -bad. CODEC is h264 or h265. Prints the port.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - after the versions are chosen

if __name__ == "__main__":
    film, codec = sys.argv[1:]
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    factory = GstRtspServer.RTSPMediaFactory()
    pay = f"{codec}parse ! rtp{codec}pay name=pay0 pt=96 config-interval=-1"
    factory.set_launch(f"( filesrc location={film} ! qtdemux ! {pay} )")
    server.get_mount_points().add_factory("/line", factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()
