"""Block tables as data: the MobileNets and the spaces that contain them."""
