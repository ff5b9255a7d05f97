from rankwise.vision.distilled.dataset import DistilledDataset as DistilledDataset
from rankwise.vision.distilled.students import train_student as train_student
from rankwise.vision.distilled.views import Views as Views
from rankwise.vision.hello import Distiller as Distiller
from rankwise.vision.tokens import zero_tprune as zero_tprune
