"""Who is enrolled in an identity service: embeddings without pictures, sealed, and from when on somebody is known.

Nothing here ever leaves the device, and no picture is kept: what is stored cannot show anybody. Every enrolled picture
is one row, sealed with the device's key-encryption key as samples are, its name with it.

records     what is stored and said
store       the rows; free of numpy, for the supervisor as well
view        what the rows amount to: a gallery with its threshold
live        the worker's side: recognises, enrols, follows what others change
desk        the supervisor's side: lists, removes, passes pictures on
routes      of the local API
"""
