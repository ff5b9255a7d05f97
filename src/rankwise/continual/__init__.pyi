from rankwise.continual.augmentation import Augmentation as Augmentation
from rankwise.continual.cotta import CoTTA as CoTTA
from rankwise.continual.settings import Settings as Settings
from rankwise.continual.tent import Tent as Tent
from rankwise.continual.vida import TestTimeAdapter as TestTimeAdapter
from rankwise.continual.vida import warm_up as warm_up
